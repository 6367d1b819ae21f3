"""One connection in a shared tunnel: an application's socket, and frames among those of others.

    application --recv--> [header|payload] among those of the tunnel's other streams   (up, stream_up.py)
    application <--send-- payload slices of the arena                                  (down, stream_down.py)

    opening --VERDICT ok, start--> carrying --EOF both ways--> over
    opening, carrying --RESET, cut, tunnel lost--> over
    carrying --no credit left--> moves to a tunnel of its own (stream_move.py, tunnel_pair.py)

Each direction may have ``WINDOW_BYTES`` under way.  Who has no credit left is a
bulk transfer, or its reader is slow: both are better off, and do the others no
harm, in a tunnel of their own, where TCP's windows do that.
"""

import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from node_agent.errors import RemoteProtocolError
from node_agent.frames import HEADER_BYTES, CutReason, decode_reset, encode_reset
from node_agent.relay.ending import Ending, Outcome
from node_agent.relay.linger import end_on_close, reset_on_close
from node_agent.relay.loop import ERR, HUP, IN, OUT, RDHUP, READ, RelayLoop
from node_agent.relay.news import News
from node_agent.relay.send_queue import unsent_bytes
from node_agent.relay.stream_down import StreamDown
from node_agent.relay.stream_move import Move, OnBack
from node_agent.relay.stream_up import StreamUp
from node_agent.relay.tunnel_pair import Handed, TunnelPair
from node_agent.stream_frames import (
    StreamFrameType,
    decode_credit,
    encode_stream_frame,
)

if TYPE_CHECKING:
    from node_agent.relay.shared_tunnel import SharedTunnel

_SILENT: Final = -1  # equal to no mask, so the next change of interest registers again

OnVerdict = Callable[[bytes | None], None]
"""Gets the payload of the VERDICT, None if the stream ended before."""


class Stream:
    """Owns ``plain`` from ``carry`` until ``on_done``, and an own tunnel from ``move`` or ``attach``.

    ``up_bytes`` (application to tunnel) and ``down_bytes`` may be read at any
    time.  ``down`` is for the shared tunnel.
    """

    __slots__ = (
        "_loop",
        "_mask",
        "_move",
        "_on_done",
        "_on_own",
        "_outcome",
        "_pair",
        "_plain",
        "_plain_fd",
        "_shared",
        "_up",
        "down",
        "on_verdict",
        "stream_id",
    )

    def __init__(self, *, loop: RelayLoop, shared: "SharedTunnel", stream_id: int) -> None:
        self._loop = loop
        self._shared = shared
        self.stream_id = stream_id
        self._up = StreamUp(shared=shared.up, stream_id=stream_id)
        self.down = StreamDown(shared=shared.up, stream_id=stream_id)
        self._plain: socket.socket | None = None
        self._plain_fd = -1
        self._mask = READ
        self._outcome: Outcome | None = None
        self._move: Move | None = None
        self._pair: TunnelPair | None = None
        self._on_own: Callable[[], None] | None = None
        self.on_verdict: OnVerdict | None = None

    # -- what the story sees ------------------------------------------------

    @property
    def up_bytes(self) -> int:
        return self._up.moved_bytes if self._pair is None else self._pair.up_bytes

    @property
    def down_bytes(self) -> int:
        return self.down.moved_bytes if self._pair is None else self._pair.down_bytes

    @property
    def is_half_closed(self) -> bool:
        """Whether exactly one direction has ended."""
        return self._up.has_ended != self.down.has_ended if self._pair is None else self._pair.is_half_closed

    @property
    def held_bytes(self) -> int:
        """Bytes that were read from one side and wait for the other."""
        return len(self.down.held or b"") if self._pair is None else self._pair.held_bytes

    @property
    def is_over(self) -> bool:
        return self._outcome is not None

    @property
    def is_carrying(self) -> bool:
        """Whether it is open, in the shared tunnel."""
        return self._plain is not None and self._outcome is None and self._pair is None

    @property
    def has_moved(self) -> bool:
        """Whether it is, or was when it ended, on a tunnel of its own."""
        return self._pair is not None

    def send_queues(self) -> tuple[int, int]:
        """The bytes that wait to be taken: up by the peer agent, of all its streams, down by the application."""
        if self._pair is not None:
            return self._pair.send_queues()
        return unsent_bytes(self._shared.tunnel), 0 if self._plain is None else unsent_bytes(self._plain)

    def answer(self, payload: bytes, *, is_refusal: bool) -> None:
        """Say the verdict; a refusal ends the stream.  Only at the destination."""
        if not self.is_over:
            self._say(StreamFrameType.VERDICT, payload)
            if is_refusal:
                self.forget()

    def forget(self) -> None:
        """It was refused."""
        self._finish(Outcome(ending=Ending.COMPLETE))

    def carry(
        self, plain: socket.socket, on_done: Callable[[Outcome], None], on_own: Callable[[], None] | None
    ) -> None:
        """Take the application's socket over; ``start`` follows.  ``on_own``: a tunnel of its own is wished for."""
        self._plain = plain
        self._plain_fd = plain.fileno()
        self._on_done = on_done
        self._on_own = on_own
        if on_own is not None and self._move is not None and self._move.has_asked:
            self._loop.report_later(on_own)  # the peer has wished for it before we were here

    def start(self) -> None:
        """Hand the socket to the loop; called once."""
        plain = self._plain
        assert plain is not None
        if self._outcome is not None:  # it ended between the verdict and now
            reset_on_close(plain)
            outcome = self._outcome
            self._loop.call_soon(lambda: self._report(plain, outcome))
            return
        self._up.begin(plain)
        if self.down.begin(plain):
            self._mask = READ | OUT  # what came before us is delivered at the first event
        self._loop.adopt(self._plain_fd, self._mask, self._on_plain)

    def cut(self, reason: CutReason | None) -> None:
        """Abort, and tell the peer agent why; called from any thread, harmless when it is over."""
        self._loop.call_soon(lambda: self._cut(reason))

    def _cut(self, reason: CutReason | None) -> None:
        if self._pair is not None:
            self._pair.cut(reason)
        else:
            self._abort(Ending.CUT, encode_reset(reason))

    # -- from the application -------------------------------------------------

    def _on_plain(self, event: int) -> None:
        if event == IN and self._mask == READ:
            if (news := self._up.pump()) is not None:
                self._heed_up(news)
            return
        if event & OUT:
            self.heed(self.down.flush())
        if not self.is_carrying:
            return
        if self._mask & IN:
            if event & ~OUT:
                self._pump(is_last=bool(event & RDHUP))
        elif event & ERR:
            self._reset_by_application()
        elif event & HUP:
            self._loop.silence(self._plain_fd)
            self._mask = _SILENT

    def _pump(self, *, is_last: bool) -> None:
        news = self._up.pump(is_last=is_last)
        if news is not None:
            self._heed_up(news)

    def _heed_up(self, news: News) -> None:
        if self._up.is_waiting:
            self._shared.up.waiting.append(self)
        if not self._up.credit:
            self._wish()
        self.heed(news)

    def go_on(self) -> None:
        """The shared tunnel is not blocked any more."""
        self._up.is_waiting = False
        self._update_interest()

    # -- from the tunnel --------------------------------------------------------

    def obey(self, kind: int, payload: bytes) -> None:
        """A frame that is not DATA has come; raises RemoteProtocolError."""
        is_source = self._shared.is_source
        if self.on_verdict is not None and kind != StreamFrameType.VERDICT:
            raise RemoteProtocolError(f"stream {self.stream_id}: a frame of type {kind} before its verdict")
        if kind == StreamFrameType.CREDIT:
            self._up.allow(decode_credit(payload))
            self._update_interest()
        elif kind == StreamFrameType.EOF and not payload:
            self.heed(self.down.end())
        elif kind == StreamFrameType.RESET:
            self._end(Ending.PEER_RESET, decode_reset(payload) if payload else None)
        elif kind == StreamFrameType.VERDICT and self.on_verdict is not None:
            on_verdict, self.on_verdict = self.on_verdict, None
            self.down.is_deaf = False
            self._loop.report_later(lambda: on_verdict(payload))
        elif kind == StreamFrameType.OWN and is_source and not payload:
            self._moving().is_wanted_by_peer = True
            self._wish()
        elif kind == StreamFrameType.MOVED and not payload and self._may_leave(is_source=is_source):
            self._moving().peer_has_left = self.down.is_deaf = True
            self._switch_if_ready()
        else:
            raise RemoteProtocolError(f"stream {self.stream_id}: a frame of type {kind} that is not in order")

    def heed(self, news: News | None) -> None:
        """Something else than bytes happened on the way down."""
        if news is News.CHANGED:
            self._look()
        elif news is not None:
            self._reset_by_application()

    def _look(self) -> None:
        """A half has changed: is it the end, and if not, what is there to wait for?"""
        if self._up.has_ended and self.down.is_out:
            assert self._plain is not None
            end_on_close(self._plain)
            self._finish(Outcome(ending=Ending.COMPLETE))
        else:
            self._update_interest()

    def _update_interest(self) -> None:
        if not self.is_carrying:
            return
        is_leaving = self._move is not None and self._move.is_leaving
        is_reading = self._up.may_read and not is_leaving
        mask = (READ if is_reading else 0) | (OUT if self.down.held is not None else 0)
        if mask != self._mask:
            self._mask = mask
            self._loop.interest(self._plain_fd, mask)

    # -- to a tunnel of its own -------------------------------------------------

    def _moving(self) -> Move:
        if self._move is None:
            self._move = Move(self._loop)
        return self._move

    def _may_leave(self, *, is_source: bool) -> bool:
        """Whether the peer may say MOVED: the destination does when it has heard it, and nobody does twice."""
        moving = self._moving()
        return not moving.peer_has_left and moving.is_leaving is is_source

    def _wish(self) -> None:
        moving = self._moving()
        if moving.has_asked or moving.is_leaving:
            return
        moving.has_asked = True
        if not self._shared.is_source:
            self._say(StreamFrameType.OWN)
        elif self._on_own is not None:
            self._loop.report_later(self._on_own)

    def may_ask_again(self) -> None:
        """No tunnel could be had for it."""
        moving = self._moving()
        moving.has_asked = False
        if not self._up.credit or moving.is_wanted_by_peer:  # which says so once
            self._wish()

    def move(self, own: ssl.SSLSocket) -> None:
        """Go on in ``own``, on which ATTACH was said.  Only at the source, for a stream that is carrying."""
        moving = self._moving()
        moving.own = own
        moving.is_leaving = True
        self._say(StreamFrameType.MOVED)
        self.down.is_mute = True
        self._update_interest()

    def attach(self, own: ssl.SSLSocket, on_back: OnBack) -> None:
        """The source has said ATTACH in ``own``.  Only at the destination.  ``on_back``: as in ``Move``."""
        if not self.is_carrying:
            self._loop.close_later(own)
            self._loop.report_later(lambda: on_back(None))
            return
        moving = self._moving()
        moving.abandon()  # one from before, of which the source has not heard
        moving.own = own
        moving.on_back = on_back
        self._switch_if_ready()

    def _switch_if_ready(self) -> None:
        moving, plain = self._moving(), self._plain
        if not moving.is_leaving and self._up.has_ended and self.down.has_ended:
            moving.abandon()  # both ends were said here: the source does not wait for our MOVED, it is over for it
            return
        if plain is None or (own := moving.take()) is None:
            return
        if not moving.is_leaving:
            self._say(StreamFrameType.MOVED)
        down = self.down
        self._shared.streams.pop(self.stream_id, None)
        self._loop.forget(self._plain_fd)
        self._pair = TunnelPair(
            loop=self._loop,
            plain=plain,
            tunnel=own,
            on_done=self._pair_done,
            handed=Handed(
                up_bytes=self._up.moved_bytes,
                down_bytes=down.moved_bytes,
                held=None if down.held is None else bytes(down.held),
                is_shut=down.is_out,
            ),
        )
        down.held = None
        self._pair.start()

    def _pair_done(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._on_done(outcome)
        self._moving().tell(outcome)

    # -- the end --------------------------------------------------------------

    def lose(self, ending: Ending) -> None:
        """The shared tunnel is over."""
        self._end(ending)

    def _reset_by_application(self) -> None:
        self._abort(Ending.PLAIN_RESET, encode_reset(None))

    def _abort(self, ending: Ending, reset: bytes) -> None:
        """End it from our side; ``reset`` as it is said in a tunnel of its own."""
        if self.is_over:
            return
        if self._move is None or not self._move.say_last(reset):
            self._say(StreamFrameType.RESET, reset[HEADER_BYTES:])
        self._end(ending)

    def _end(self, ending: Ending, reason: CutReason | None = None) -> None:
        if self._plain is not None:
            reset_on_close(self._plain)
        self._finish(Outcome(ending=ending, reason=reason))

    def _finish(self, outcome: Outcome) -> None:
        if self.is_over:
            return
        self._outcome = outcome
        self._on_own = None  # it knows us, too: as a ring they would wait for the garbage collector
        self._shared.streams.pop(self.stream_id, None)
        self.down.held = None
        if self._move is not None:
            self._move.abandon()
        if self.on_verdict is not None:
            on_verdict, self.on_verdict = self.on_verdict, None
            self._loop.report_later(lambda: on_verdict(None))
        if self._plain is not None:
            self._report(self._plain, outcome)

    def _report(self, plain: socket.socket, outcome: Outcome) -> None:
        self._loop.close_later(plain)
        self._loop.report_later(lambda: self._on_done(outcome))

    def _say(self, kind: StreamFrameType, payload: bytes = b"") -> None:
        self._shared.up.say(encode_stream_frame(kind, self.stream_id, payload))
