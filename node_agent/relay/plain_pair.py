"""Two sockets joined without a tunnel: passthrough, and plaintext that a workload accepts.

Each direction is a ``_Flow`` in one of these states:

    reading --send blocked--> holding --flushed--> reading --EOF--> ended (the other socket is shut for writing)

The pair is complete when both flows have ended.  A reset of one socket resets
the other.  While a meter has it paused nothing is read (meter.py).
"""

import socket
from collections.abc import Callable
from typing import Final

from node_agent.errors import CloseReason
from node_agent.relay.ending import Ending, Outcome
from node_agent.relay.loop import ARENA_BYTES, ERR, HUP, IN, OUT, RelayLoop
from node_agent.relay.meter import Meter, Metered
from node_agent.relay.socket_pair import SocketPair

_SILENT: Final = -1
_FIRST_READ_BYTES: Final = 16 * 1024


class _Flow:
    """One direction: from ``source`` to ``sink``; what it means when one of them breaks."""

    __slots__ = (
        "ended",
        "held",
        "moved_bytes",
        "read_bytes",
        "recv_into",
        "send",
        "sink",
        "sink_broken",
        "source_broken",
    )

    def __init__(
        self, source: socket.socket, sink: socket.socket, *, source_broken: Ending, sink_broken: Ending
    ) -> None:
        self.recv_into = source.recv_into
        self.send = sink.send
        self.sink = sink
        self.source_broken = source_broken
        self.sink_broken = sink_broken
        self.held: memoryview | None = None
        self.ended = False
        self.moved_bytes = 0
        self.read_bytes = _FIRST_READ_BYTES


class PlainPair(SocketPair[_Flow]):
    """See ``SocketPair``; with a ``meter`` both directions are paced."""

    __slots__ = ("_meter", "_most_bytes", "_paused")

    def __init__(
        self,
        *,
        loop: RelayLoop,
        first: socket.socket,
        second: socket.socket,
        on_done: Callable[[Outcome], None],
        meter: Meter | None = None,
    ) -> None:
        super().__init__(
            loop=loop,
            first=first,
            second=second,
            on_done=on_done,
            up=_Flow(first, second, source_broken=Ending.PLAIN_RESET, sink_broken=Ending.PEER_RESET),
            down=_Flow(second, first, source_broken=Ending.PEER_RESET, sink_broken=Ending.PLAIN_RESET),
        )
        self._paused = False
        self._meter = None if meter is None else Metered(loop=loop, pair=self, meter=meter)
        self._most_bytes = ARENA_BYTES if meter is None else meter.most_bytes
        self._up.read_bytes = self._down.read_bytes = min(_FIRST_READ_BYTES, self._most_bytes)

    def start(self) -> None:
        """Hand both sockets to the loop; called once."""
        second_fd = self._second.fileno()
        first_fd = self._first.fileno()

        def on_second(event: int) -> None:
            self._serve(event, second_fd, self._down, self._up)

        def on_first(event: int) -> None:
            self._serve(event, first_fd, self._up, self._down)

        meter = self._meter
        self._loop.adopt(second_fd, IN, on_second if meter is None else meter.handler(on_second))
        self._loop.adopt(first_fd, IN, on_first if meter is None else meter.handler(on_first))
        if meter is not None:
            meter.start()

    # -- for the meter ------------------------------------------------------

    @property
    def moved_bytes(self) -> int:
        """Both ways together."""
        return self._up.moved_bytes + self._down.moved_bytes

    @property
    def is_over(self) -> bool:
        return self._over

    def abort(self, _reason: CloseReason) -> None:
        """Abort both sides, from within the loop."""
        self._abort(Ending.CUT)

    def pause(self) -> None:
        """Read neither socket."""
        self._paused = True
        if not self._over:
            self._update_interest()

    def resume(self) -> None:
        self._paused = False
        if not self._over:
            self._update_interest()

    # -- events -------------------------------------------------------------

    def _serve(self, event: int, fd: int, outgoing: _Flow, incoming: _Flow) -> None:
        """Obey an event of the socket that ``outgoing`` reads from and ``incoming`` writes to."""
        if incoming.held is not None and event & OUT:
            self._flush(incoming)
        if self._over:
            return
        if self._masks[fd] & IN and self._masks[fd] != _SILENT:
            if event & ~OUT:
                self._pump(outgoing)
        elif event & ERR:
            self._abort(outgoing.source_broken)
        elif event & HUP:
            self._loop.silence(fd)
            self._masks[fd] = _SILENT
            return
        if not self._over:
            self._update_interest()

    def _pump(self, flow: _Flow) -> None:
        arena = self._loop.arena
        try:
            received = flow.recv_into(arena, flow.read_bytes)
        except BlockingIOError:
            return
        except OSError:
            self._abort(flow.source_broken)
            return
        if not received:
            flow.ended = True
            try:
                flow.sink.shutdown(socket.SHUT_WR)
            except OSError:
                self._abort(flow.sink_broken)
            return
        flow.moved_bytes += received
        if received == flow.read_bytes:
            flow.read_bytes = min(received * 4, self._most_bytes)
        try:
            sent = flow.send(arena[:received])
        except BlockingIOError:
            sent = 0
        except OSError:
            self._abort(flow.sink_broken)
            return
        if sent < received:
            flow.held = self._loop.keep(arena[sent:received])

    def _update_interest(self) -> None:
        if self._up.ended and self._down.ended:
            self._complete()
            return
        for sock, outgoing, incoming in (
            (self._first, self._up, self._down),
            (self._second, self._down, self._up),
        ):
            fd = sock.fileno()
            mask = (IN if not outgoing.ended and outgoing.held is None and not self._paused else 0) | (
                OUT if incoming.held is not None else 0
            )
            if mask != self._masks[fd]:
                self._masks[fd] = mask
                self._loop.interest(fd, mask)
