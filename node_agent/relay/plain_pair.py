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
from node_agent.frames import CutReason
from node_agent.relay.ending import Ending, Outcome
from node_agent.relay.linger import end_on_close, reset_on_close
from node_agent.relay.loop import ARENA_BYTES, ERR, HUP, IN, OUT, RelayLoop
from node_agent.relay.meter import Meter, Metered
from node_agent.relay.send_queue import unsent_bytes

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


class PlainPair:
    """Owns both sockets from ``start`` until ``on_done``, by when both are closed.

    ``on_done`` is called by the loop.  ``up_bytes`` (first to second socket)
    and ``down_bytes`` may be read at any time.
    """

    __slots__ = (
        "_down",
        "_first",
        "_loop",
        "_masks",
        "_meter",
        "_most_bytes",
        "_on_done",
        "_over",
        "_paused",
        "_second",
        "_up",
    )

    def __init__(
        self,
        *,
        loop: RelayLoop,
        first: socket.socket,
        second: socket.socket,
        on_done: Callable[[Outcome], None],
        meter: Meter | None = None,
    ) -> None:
        self._loop = loop
        self._first = first
        self._second = second
        self._on_done = on_done
        self._up = _Flow(first, second, source_broken=Ending.PLAIN_RESET, sink_broken=Ending.PEER_RESET)
        self._down = _Flow(second, first, source_broken=Ending.PEER_RESET, sink_broken=Ending.PLAIN_RESET)
        self._masks = {first.fileno(): IN, second.fileno(): IN}
        self._over = False
        self._paused = False
        self._meter = None if meter is None else Metered(loop=loop, pair=self, meter=meter)
        self._most_bytes = ARENA_BYTES if meter is None else meter.most_bytes
        self._up.read_bytes = self._down.read_bytes = min(_FIRST_READ_BYTES, self._most_bytes)

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

    def cut(self, _reason: CutReason | None) -> None:
        """Abort both sides; called from any thread, harmless when it is over."""
        self._loop.call_soon(lambda: self._abort(Ending.CUT))

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

    def _flush(self, flow: _Flow) -> None:
        held = flow.held
        assert held is not None
        try:
            sent = flow.send(held)
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

    def _update_interest(self) -> None:
        if self._up.ended and self._down.ended:
            end_on_close(self._first)
            end_on_close(self._second)
            self._end(Ending.COMPLETE)
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
        outcome = Outcome(ending=ending)
        self._loop.report_later(lambda: self._on_done(outcome))
