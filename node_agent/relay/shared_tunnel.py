"""One tunnel that carries many connections: small ones, and those that rest.

What the streams have to say in one turn of the loop is gathered and written at
its end: one TLS record, one packet and one wake-up of the peer for all of them,
where a tunnel for each would have needed one of each for each.  What comes is
read once and handed to the streams frame by frame (stream.py).

    writing --write blocked--> blocked (no stream reads its application) --written--> writing

The peer always reads: what its applications do not take is bounded by the
credit of each stream.  So no stream can block the others for long, and one that
needs more than its credit moves to a tunnel of its own (docs/tunnel-protocol.md).
"""

import math
import ssl
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from node_agent.errors import CloseReason, RemoteProtocolError
from node_agent.frames import (
    HEADER_BYTES,
    LENGTH_MASK,
    MAX_CONTROL_BYTES,
    TYPE_SHIFT,
    Open,
    Verdict,
    decode_open,
    encode_verdict,
)
from node_agent.relay.asking import Asking
from node_agent.relay.ending import Ending
from node_agent.relay.linger import reset_on_close
from node_agent.relay.loop import IN, OUT, RelayLoop
from node_agent.relay.shared_up import SharedUp
from node_agent.relay.stream import Stream
from node_agent.stream_frames import (
    MAX_STREAM_DATA_BYTES,
    MAX_STREAMS,
    STREAM_HEADER,
    STREAM_HEADER_BYTES,
    StreamFrameType,
    encode_stream_frame,
)

_TLS_RECORD_BYTES: Final = 16384  # RFC 8446 section 5.1; a read of this size takes a whole record, so none hides in SSL
_MAX_READ_BYTES: Final = 64 * 1024  # in one turn, and a record
"""What a peer may not have read, of verdicts and such: more than for all its streams at a time."""
_DATA: Final = int(StreamFrameType.DATA)
_DATA_WORD: Final = _DATA << TYPE_SHIFT
_WANT: Final = (ssl.SSLWantWriteError, ssl.SSLWantReadError)
_unpack_header = STREAM_HEADER.unpack_from

OnOpen = Callable[[Stream, Open], None]


class SharedTunnel:
    """Owns ``tunnel`` until it is over.

    ``on_open``: at the destination, gets each new stream with its OPEN; None at
    the source, which opens them.  ``on_end`` is called once, when the tunnel is
    over, with all its streams.  Both are called by the loop, between two batches,
    and may start tasks.  ``fault``: how the peer broke the protocol.  ``refuses``:
    with what VERDICT new streams are refused, if they are.  ``up`` is for the
    streams.
    """

    __slots__ = (
        "_asking",
        "_highest",
        "_look_at",
        "_loop",
        "_on_end",
        "_on_open",
        "_read",
        "_remaining",
        "_rest",
        "_tunnel",
        "_unfinished",
        "fault",
        "is_over",
        "refuses",
        "streams",
        "up",
    )

    def __init__(
        self, *, loop: RelayLoop, tunnel: ssl.SSLSocket, on_open: OnOpen | None, on_end: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._tunnel = tunnel
        tls = tunnel._sslobj  # type: ignore[attr-defined]  # noqa: SLF001  # as in tunnel_pair.py
        self._read = tls.read
        self.up = SharedUp(
            loop=loop,
            tls_write=tls.write,
            on_blocked=self._wait_for_room,
            on_broken=lambda: self._fail(Ending.TUNNEL_LOST),
        )
        self._on_open = on_open
        self._on_end = on_end
        self._rest = b""
        self._remaining = 0  # of a frame of DATA whose beginning was handed out, to the stream of this number:
        self._unfinished = 0
        self._highest = 0
        self._asking: dict[int, Asking] = {}
        self._look_at = math.inf
        self.is_over = False
        self.fault: str | None = None
        self.refuses: bytes | None = None
        self.streams: dict[int, Stream] = {}

    @property
    def tunnel(self) -> ssl.SSLSocket:
        return self._tunnel

    @property
    def is_source(self) -> bool:
        return self._on_open is None

    @property
    def opened_count(self) -> int:
        """How many streams it has had."""
        return self._highest

    def start(self) -> None:
        """Hand the tunnel to the loop; called once."""
        # Bytes already inside SSL raise no event of their own; "writable" is true at once and brings us there.
        mask = IN | OUT if self._tunnel.pending() else IN
        self._loop.adopt_quiet(self._tunnel.fileno(), mask, self._on_event)

    def open(self, payload: bytes) -> Stream:
        """Ask for a connection; its answer comes to the stream's ``on_verdict``.  Only at the source."""
        self._highest += 1
        stream = Stream(loop=self._loop, shared=self, stream_id=self._highest)
        stream.down.is_deaf = True  # until its verdict
        self.streams[self._highest] = stream
        self.up.say(encode_stream_frame(StreamFrameType.OPEN, self._highest, payload))
        return stream

    async def ask(self, payload: bytes, timeout_s: float) -> tuple[Stream, bytes | None]:
        """Open a stream; returns it with the payload of its VERDICT, or None if it ended before.  Only at the source.

        When the caller is cancelled the stream is reset.  Raises trio.TooSlowError when there is no verdict within
        ``timeout_s``: it is reset then, too.
        """
        stream = self.open(payload)
        asking = Asking(stream, due_at=time.monotonic() + timeout_s)
        self._asking[stream.stream_id] = asking
        if asking.due_at < self._look_at:
            self._look_out(asking.due_at, timeout_s)
        try:
            return stream, await asking.answer()
        finally:
            del self._asking[stream.stream_id]

    def _look_out(self, at: float, delay_s: float) -> None:
        """One look for all that wait: most have their answer long before, and shall not pay for a timer each."""
        self._look_at = at
        self._loop.call_later(delay_s, partial(self._look, at))

    def _look(self, at: float) -> None:
        """Give up those whose time is over."""
        if at != self._look_at:
            return  # an earlier look was called for since, which calls for the next
        now = time.monotonic()
        self._look_at = next_at = math.inf
        for asking in list(self._asking.values()):
            if asking.due_at <= now:
                asking.give_up(self._loop)
            else:
                next_at = min(next_at, asking.due_at)
        if next_at < math.inf:
            self._look_out(next_at, next_at - now)

    def close(self, *, reset: bool = False) -> None:
        """End the tunnel, and the streams that are left; called from outside of the loop.

        ``reset``: by RST, because the workload is gone: after a FIN the kernel would hold its namespace for a minute.
        """
        if not self.is_over:
            if reset:
                reset_on_close(self._tunnel)
            self.up.flush()
            if not self.is_over:  # by that
                self._lose(Ending.TUNNEL_LOST)
            self._loop.close_now(self._tunnel)

    # -- events -------------------------------------------------------------

    def _on_event(self, event: int) -> None:
        if event == IN:
            self._pump()
            return
        if event & OUT:
            if not self.up.is_blocked or self.up.write_again():
                self._loop.interest(self._tunnel.fileno(), IN)
            event |= IN
        if event & ~OUT and not self.is_over:
            self._pump()

    def _wait_for_room(self) -> None:
        self._loop.interest(self._tunnel.fileno(), IN | OUT)

    def _pump(self) -> None:
        """Read some records, hand their frames to the streams."""
        arena = self._loop.arena
        read = self._read
        rest = self._rest
        is_lost = False
        end = 0
        try:
            if rest or self._remaining:
                end = len(rest)
                arena[:end] = rest
                got = read(_TLS_RECORD_BYTES, arena[end:])
            else:
                got = read(_TLS_RECORD_BYTES, arena)
                if STREAM_HEADER_BYTES < got < _TLS_RECORD_BYTES:
                    # Often: one record, and in it one whole DATA frame.
                    word, stream_id = _unpack_header(arena)
                    if word == _DATA_WORD | got - STREAM_HEADER_BYTES and (stream := self.streams.get(stream_id)):
                        news = stream.down.take(arena[STREAM_HEADER_BYTES:got])
                        if news is not None:
                            stream.heed(news)
                        return
            end += got
            while got == _TLS_RECORD_BYTES and end <= _MAX_READ_BYTES:
                got = read(_TLS_RECORD_BYTES, arena[end:])
                end += got
            is_lost = not got
        except _WANT:
            pass
        except OSError:
            is_lost = True
        except RemoteProtocolError as error:
            self._break_off(error)
            return
        try:
            start = self._hand_out(arena, end)
        except RemoteProtocolError as error:
            self._break_off(error)
            return
        if is_lost:
            self._fail(Ending.TUNNEL_LOST)
        elif start != end or rest:
            self._rest = bytes(arena[start:end])

    def _break_off(self, error: RemoteProtocolError) -> None:
        self.fault = str(error)
        self._fail(Ending.PROTOCOL_ERROR)

    def _hand_out(self, arena: memoryview, end: int) -> int:
        """Obey the frames in ``arena[:end]``, of DATA also what is there of it; returns where the rest begins."""
        start = 0
        streams = self.streams
        if self._remaining:
            start = min(self._remaining, end)
            self._remaining -= start
            if start and (stream := streams.get(self._unfinished)) is not None:
                stream.heed(stream.down.take(arena[:start]))
        while end - start >= STREAM_HEADER_BYTES and not self.is_over:
            word, stream_id = _unpack_header(arena, start)
            body = start + STREAM_HEADER_BYTES
            length = word & LENGTH_MASK
            stream = streams.get(stream_id)
            start = body + length
            if word >> TYPE_SHIFT == _DATA:
                if not 0 < length <= MAX_STREAM_DATA_BYTES:
                    raise RemoteProtocolError(f"DATA of {length} bytes")
                if start > end:
                    self._remaining = start - end
                    self._unfinished = stream_id
                    start = end
                if stream is None:
                    self._obey_unknown(_DATA, stream_id, _NOTHING)
                elif start > body and (news := stream.down.take(arena[body:start])) is not None:
                    stream.heed(news)
                continue
            if length > MAX_CONTROL_BYTES:
                raise RemoteProtocolError(f"a frame of {length} bytes")
            if start > end:
                return body - STREAM_HEADER_BYTES
            if stream is None:
                self._obey_unknown(word >> TYPE_SHIFT, stream_id, arena[body:start])
            else:
                stream.obey(word >> TYPE_SHIFT, bytes(arena[body:start]))
        return start

    def _obey_unknown(self, kind: int, stream_id: int, payload: memoryview) -> None:
        if kind == StreamFrameType.OPEN and self._on_open is not None and stream_id > self._highest:
            self._highest = stream_id
            self._accept(stream_id, bytes(payload))
        elif not 0 < stream_id <= self._highest or kind not in _KINDS or kind == StreamFrameType.OPEN:
            raise RemoteProtocolError(f"a frame of type {kind} for stream {stream_id}, which is not open")
        # Else it crossed the end of its stream.

    def _accept(self, stream_id: int, payload: bytes) -> None:
        message = decode_open(payload)
        if message.check is not None:
            raise RemoteProtocolError("OPEN: a check in a shared tunnel")
        refuses = self.refuses if len(self.streams) < MAX_STREAMS else _OVERLOADED
        if refuses is not None:
            self.up.say(encode_stream_frame(StreamFrameType.VERDICT, stream_id, refuses))
            return
        stream = Stream(loop=self._loop, shared=self, stream_id=stream_id)
        self.streams[stream_id] = stream
        on_open = self._on_open
        assert on_open is not None
        self._loop.report_later(lambda: on_open(stream, message))

    # -- the end --------------------------------------------------------------

    def _fail(self, ending: Ending) -> None:
        """End the tunnel from within the loop."""
        if not self.is_over:
            self._lose(ending)
            self._loop.close_later(self._tunnel)

    def _break(self) -> None:
        self._fail(Ending.TUNNEL_LOST)

    def _lose(self, ending: Ending) -> None:
        self.is_over = True
        self._loop.forget_quiet(self._tunnel.fileno())
        self.up.stop()
        for stream in list(self.streams.values()):
            stream.lose(ending)
        self.streams.clear()
        self._loop.report_later(self._on_end)


_NOTHING: Final = memoryview(b"")
_KINDS: Final = frozenset(StreamFrameType)
_OVERLOADED: Final = encode_verdict(
    Verdict(reason=CloseReason.OVERLOADED, detail=f"there are {MAX_STREAMS} connections in this tunnel")
)[HEADER_BYTES:]
