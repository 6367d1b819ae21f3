"""How a stream gets a tunnel of its own: bulk has a TCP connection's windows there, and is in nobody's way.

    source       no credit left, or OWN heard --ATTACH said in a tunnel--> leaving (MOVED said) --MOVED heard--> moved
    destination  no credit left: OWN said;  ATTACH and MOVED heard --MOVED said--> moved

Who has said MOVED writes no more of this stream in the shared tunnel, who has
heard it has heard all of it there (docs/tunnel-protocol.md).
"""

import ssl
from collections.abc import Callable

from node_agent.relay.ending import Outcome
from node_agent.relay.farewell import Farewell
from node_agent.relay.loop import RelayLoop

OnBack = Callable[[Outcome | None], None]


class Move:
    """The state of one stream's move; owns the ``own`` tunnel that it is given, until it is taken.

    ``on_back`` is called by the loop when that is over: with the outcome of the
    connection if it ended there, None if it ended before (it is closed then).
    """

    __slots__ = ("_loop", "has_asked", "is_leaving", "is_wanted_by_peer", "on_back", "own", "peer_has_left")

    def __init__(self, loop: RelayLoop) -> None:
        self._loop = loop
        self.has_asked = False
        self.is_wanted_by_peer = False
        self.is_leaving = False
        self.peer_has_left = False
        self.own: ssl.SSLSocket | None = None
        self.on_back: OnBack | None = None

    def take(self) -> ssl.SSLSocket | None:
        """The own tunnel, when both ends have come to use it."""
        if not self.peer_has_left:
            return None
        own, self.own = self.own, None
        return own

    def say_last(self, reset: bytes) -> bool:
        """Say RESET in the own tunnel if the peer listens there, or soon does; whether it does."""
        if self.own is None or not self.is_leaving:
            return False
        own, self.own = self.own, None
        Farewell(loop=self._loop, tunnel=own, to_write=[memoryview(reset)]).start()
        return True

    def abandon(self) -> None:
        """The stream has ended before it moved, or has no use for the tunnel."""
        if self.own is not None:
            self._loop.close_later(self.own)
            self.own = None
        self.tell(None)

    def tell(self, outcome: Outcome | None) -> None:
        """Let who gave the tunnel know; once."""
        if self.on_back is not None:
            on_back, self.on_back = self.on_back, None
            self._loop.report_later(lambda: on_back(outcome))
