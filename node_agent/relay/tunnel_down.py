"""From the tunnel to the application: records decrypted into the arena, their payloads sent from there.

reading --send blocked--> holding --flushed--> reading --EOF frame--> ended (application's socket shut)
"""

import socket
import ssl
from typing import Final, Protocol, overload

from node_agent.frames import (
    EOF_FRAME,
    HEADER,
    HEADER_BYTES,
    LENGTH_MASK,
    TYPE_SHIFT,
    CutReason,
    FrameType,
    decode_reset,
)
from node_agent.relay.frame_reader import FrameReader
from node_agent.relay.last_words import find_reset
from node_agent.relay.loop import ARENA_BYTES, RelayLoop
from node_agent.relay.news import News
from node_agent.relay.tunnel_up import Up

_TLS_RECORD_BYTES: Final = 16384  # RFC 8446 section 5.1; a read of this size takes a whole record, so none hides in SSL
_DATA_WORD: Final = FrameType.DATA << TYPE_SHIFT
(_EOF_WORD,) = HEADER.unpack(EOF_FRAME)
_GATHER_AT_MOST: Final = 16  # payloads in one sendmsg; far below IOV_MAX
_WANT: Final = (ssl.SSLWantWriteError, ssl.SSLWantReadError)
_unpack_header = HEADER.unpack_from


class TlsRead(Protocol):
    """``read`` of what is inside an SSLSocket."""

    @overload
    def __call__(self, size: int, /) -> bytes: ...

    @overload
    def __call__(self, size: int, buffer: memoryview, /) -> int: ...


class Down:
    """One half of a tunnel's pair; owns neither socket.

    ``held`` are payload bytes that the application has not taken yet.
    ``moved_bytes`` counts what came for it; ``is_shut``: it has heard the end already.
    ``rest`` is what came behind the
    peer's end, if our EOF was out by then, or behind its RESET; ``reason`` why
    the peer's agent cut the connection.
    """

    __slots__ = (
        "_expects_frame",
        "_last_start",
        "_loop",
        "_plain",
        "_reader",
        "_send",
        "_tls_read",
        "_up",
        "has_ended",
        "held",
        "is_shut",
        "moved_bytes",
        "reason",
        "rest",
    )

    def __init__(self, *, loop: RelayLoop, plain: socket.socket, tls_read: TlsRead, most_bytes: int, up: Up) -> None:
        """``most_bytes`` bounds what is read in one turn, but for one record; ``up`` is the other half."""
        self._loop = loop
        self._plain = plain
        self._send = plain.send
        self._tls_read = tls_read
        self._up = up
        # At least a whole record, or bytes would hide in SSL.
        self._last_start = min(most_bytes, ARENA_BYTES) - _TLS_RECORD_BYTES
        self._reader = FrameReader()
        self._expects_frame = True
        self.held: memoryview | None = None
        self.has_ended = False
        self.is_shut = False
        self.moved_bytes = 0
        self.rest = b""
        self.reason: CutReason | None = None

    @property
    def position(self) -> tuple[int, bytes]:
        """How far the frames were understood: payload bytes to come, and the beginning of a header."""
        return self._reader.remaining, self._reader.header

    def pump(self) -> News | None:
        """Read some records, send their payloads once."""
        arena = self._loop.arena
        read = self._tls_read
        is_lost = False
        end = 0
        try:
            end = read(_TLS_RECORD_BYTES, arena)
            if self._expects_frame and HEADER_BYTES < end < _TLS_RECORD_BYTES:
                # Nearly always: one record, and in it one whole DATA frame.
                (word,) = _unpack_header(arena)
                if word == _DATA_WORD | end - HEADER_BYTES:
                    return self._send_payload(arena[HEADER_BYTES:end])
            got = end
            while got == _TLS_RECORD_BYTES and end <= self._last_start:
                got = read(_TLS_RECORD_BYTES, arena[end:])
                end += got
            is_lost = got == 0
        except _WANT:
            pass
        except OSError:
            is_lost = True
        if not end:
            return News.TUNNEL_ENDED if is_lost else None
        reader = self._reader
        payloads: list[memoryview] = []
        word, start = reader.read(arena, 0, end, payloads)
        if word is not None and (news := self._obey(word, arena[start:end], payloads)) is not None:
            return news
        self._expects_frame = not (reader.remaining or reader.header or reader.has_ended)
        news = None
        if len(payloads) == 1:
            news = self._send_payload(payloads[0])
        elif payloads:
            news = self._send_payloads(payloads)
        elif self.has_ended:
            news = self._shut()
        if is_lost and (news is None or news is News.CHANGED):
            return News.TUNNEL_ENDED
        return news

    def _obey(self, word: int | None, rest: memoryview, payloads: list[memoryview]) -> News | None:
        """Obey a frame that is not DATA, and those behind it; ``rest`` begins with its payload."""
        while word is not None:
            if word == _EOF_WORD and not self.has_ended:
                self.has_ended = self._reader.has_ended = True
                if rest and self._up.is_out:
                    # Our EOF is out and so is theirs: what follows opens the tunnel's next connection.
                    self.rest = bytes(rest)
                    return None
            elif word >> TYPE_SHIFT == FrameType.RESET:
                length = word & LENGTH_MASK
                if not length:
                    self.rest = bytes(rest)
                    return News.PEER_RESET
                self.reason = decode_reset(bytes(rest[:length]))
                return News.PEER_CUT
            else:
                return News.PROTOCOL_ERROR
            word, start = self._reader.read(rest, 0, len(rest), payloads)
            rest = rest[start:]
        return None

    def _send_payload(self, payload: memoryview) -> News | None:
        size = len(payload)
        self.moved_bytes += size
        try:
            # Bytes and FIN in one packet, if the end is known already.
            sent = self._send(payload, socket.MSG_MORE) if self.has_ended else self._send(payload)
        except BlockingIOError:
            sent = 0
        except OSError:
            return News.PLAIN_BROKEN
        if sent < size:
            self.held = self._loop.keep(payload[sent:])
            return News.CHANGED
        return self._shut() if self.has_ended else None

    def _send_payloads(self, payloads: list[memoryview]) -> News | None:
        """Send several payloads at once; what can not be sent is joined."""
        if len(payloads) > _GATHER_AT_MOST:
            return self._send_payload(memoryview(b"".join(payloads)))
        size = sum(map(len, payloads))
        self.moved_bytes += size
        try:
            sent = self._plain.sendmsg(payloads)
        except BlockingIOError:
            sent = 0
        except OSError:
            return News.PLAIN_BROKEN
        if sent < size:
            self.held = memoryview(b"".join(payloads))[sent:]
            return News.CHANGED
        return self._shut() if self.has_ended else None

    def flush(self) -> News | None:
        """Send again what is held."""
        held = self.held
        assert held is not None
        try:
            sent = self._send(held)
        except BlockingIOError:
            return None
        except OSError:
            return News.PLAIN_BROKEN
        if sent < len(held):
            self.held = held[sent:]
            return None
        self.held = None
        self._loop.give_back(held)
        return self._shut() if self.has_ended else News.CHANGED

    def _shut(self) -> News:
        if self.is_shut:
            return News.CHANGED
        try:
            self._plain.shutdown(socket.SHUT_WR)
        except OSError:
            return News.PLAIN_BROKEN
        return News.CHANGED

    def find_reset(self) -> tuple[bool, CutReason | None]:
        """Whether there is a RESET in what the peer still said, and its reason; for a tunnel that broke."""
        remaining, header = self.position
        return find_reset(self._tls_read, remaining=remaining, header=header)
