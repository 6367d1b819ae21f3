"""What pairs of two plaintext sockets have in common: two directions, what waits in them, and how it ends."""

import socket
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from node_agent.frames import CutReason
from node_agent.relay.ending import Ending, Outcome
from node_agent.relay.linger import end_on_close, reset_on_close
from node_agent.relay.loop import IN, RelayLoop
from node_agent.relay.send_queue import unsent_bytes


class Flow(Protocol):
    """One direction: ``held`` was read and waits for ``sink``; ``sink_broken`` is what it means when that breaks."""

    ended: bool
    held: memoryview | None
    sink: socket.socket
    sink_broken: Ending

    @property
    def moved_bytes(self) -> int:
        """All that was read so far."""


FlowT = TypeVar("FlowT", bound=Flow)


class SocketPair(Generic[FlowT]):
    """Owns both sockets from ``start`` until ``on_done``, by when both are closed.

    ``on_done`` is called by the loop.  ``up_bytes`` (first to second socket)
    and ``down_bytes`` may be read at any time.
    """

    __slots__ = ("_down", "_first", "_loop", "_masks", "_on_done", "_over", "_second", "_up")

    def __init__(
        self,
        *,
        loop: RelayLoop,
        first: socket.socket,
        second: socket.socket,
        on_done: Callable[[Outcome], None],
        up: FlowT,
        down: FlowT,
    ) -> None:
        self._loop = loop
        self._first = first
        self._second = second
        self._on_done = on_done
        self._up = up
        self._down = down
        self._masks = {first.fileno(): IN, second.fileno(): IN}
        self._over = False

    @property
    def up_bytes(self) -> int:
        return self._up.moved_bytes

    @property
    def down_bytes(self) -> int:
        return self._down.moved_bytes

    @property
    def is_half_closed(self) -> bool:
        """Whether exactly one direction has ended."""
        return self._up.ended != self._down.ended

    @property
    def held_bytes(self) -> int:
        """Bytes that were read from one side and wait for the other."""
        return len(self._up.held or b"") + len(self._down.held or b"")

    def send_queues(self) -> tuple[int, int]:
        """The bytes that wait to be taken: up by the second socket's peer, down by the first's."""
        return unsent_bytes(self._second), unsent_bytes(self._first)

    def cut(self, _reason: CutReason | None) -> None:
        """Abort both sides; called from any thread, harmless when it is over."""
        self._loop.call_soon(lambda: self._abort(Ending.CUT))

    def _flush(self, flow: FlowT) -> None:
        held = flow.held
        assert held is not None
        try:
            sent = flow.sink.send(held)
        except BlockingIOError:
            return
        except OSError:
            self._abort(flow.sink_broken)
            return
        if sent < len(held):
            flow.held = held[sent:]
        else:
            flow.held = None
            self._loop.give_back(held)

    def _complete(self) -> None:
        end_on_close(self._first)
        end_on_close(self._second)
        self._end(Ending.COMPLETE)

    def _abort(self, ending: Ending) -> None:
        if self._over:
            return
        reset_on_close(self._first)
        reset_on_close(self._second)
        self._end(ending)

    def _end(self, ending: Ending) -> None:
        self._over = True
        self._loop.close_later(self._first)
        self._loop.close_later(self._second)
        self._loop.report_later(lambda: self._report(ending))

    def _report(self, ending: Ending) -> None:
        self._on_done(Outcome(ending=ending))
