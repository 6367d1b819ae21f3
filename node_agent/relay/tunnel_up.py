"""From the application to the tunnel: read once, framed in place, encrypted and written in one call.

reading --write blocked--> holding --flushed--> reading --EOF read--> ended (EOF frame sent)
"""

import socket
import ssl
from typing import Final, Protocol

from node_agent.frames import EOF_FRAME, HEADER, HEADER_BYTES, MAX_DATA_BYTES, TYPE_SHIFT, FrameType
from node_agent.relay.gathering import BIG_FRAME_BYTES, Gatherer, gatherer
from node_agent.relay.loop import RelayLoop
from node_agent.relay.news import News
from node_agent.relay.receive_queue import has_only_its_end

_FIRST_READ_BYTES: Final = 16384 - HEADER_BYTES  # with its header one whole TLS record (RFC 8446 section 5.1)
_DATA_WORD: Final = FrameType.DATA << TYPE_SHIFT
_WANT: Final = (ssl.SSLWantWriteError, ssl.SSLWantReadError)
_pack_header = HEADER.pack_into


_IN_GATHERER: Final = memoryview(b"")


class Tls(Protocol):
    """What is inside an SSLSocket."""

    def write(self, data: memoryview, /) -> int: ...


class Up:
    """One half of a tunnel's pair; owns neither socket.

    ``held`` is the frame whose write was blocked; an empty one if it is encrypted and waits in the gatherer.
    ``moved_bytes`` counts what the application sent.
    """

    __slots__ = (
        "_gatherer",
        "_loop",
        "_most_bytes",
        "_plain",
        "_read_bytes",
        "_recv_into",
        "_tls",
        "_tls_write",
        "has_ended",
        "held",
        "moved_bytes",
    )

    def __init__(
        self,
        *,
        loop: RelayLoop,
        plain: socket.socket,
        tls: Tls,
        most_bytes: int,
    ) -> None:
        """``most_bytes`` bounds one read."""
        self._loop = loop
        self._plain = plain
        self._recv_into = plain.recv_into
        self._tls = tls
        self._tls_write = tls.write
        self._gatherer: Gatherer | None = None
        self._most_bytes = min(most_bytes, MAX_DATA_BYTES)
        self._read_bytes = min(_FIRST_READ_BYTES, self._most_bytes)
        self.held: memoryview | None = None
        self.has_ended = False
        self.moved_bytes = 0

    @property
    def is_out(self) -> bool:
        """Whether our EOF is in the kernel's hands."""
        return self.has_ended and self.held is None

    def pump(self, *, is_last: bool = False) -> News | None:
        """Read once, write once; ``is_last``: the application's FIN has arrived, perhaps behind these bytes."""
        loop = self._loop
        try:
            received = self._recv_into(loop.arena_body, self._read_bytes)
        except BlockingIOError:
            return None
        except OSError:
            return News.PLAIN_BROKEN
        if received:
            self.moved_bytes += received
            arena = loop.arena
            _pack_header(arena, 0, _DATA_WORD | received)
            if received == self._read_bytes and received < self._most_bytes:
                self._read_bytes = min((received + HEADER_BYTES) * 4 - HEADER_BYTES, self._most_bytes)
            end = HEADER_BYTES + received
            if is_last:
                try:
                    is_last = received < _FIRST_READ_BYTES and has_only_its_end(self._plain)
                except OSError:
                    # The kernel tells an error once; the next recv would call the stream whole.
                    return News.PLAIN_BROKEN
            if is_last:
                # The end in the same record as the last bytes: one write, one packet, one wake-up of the peer.
                arena[end : end + HEADER_BYTES] = EOF_FRAME
                end += HEADER_BYTES
            frame = arena[:end]
        else:
            is_last = True
            frame = memoryview(EOF_FRAME)
        try:
            (self._tls_write if received < BIG_FRAME_BYTES else self._write_big)(frame)
        except _WANT:
            # OpenSSL writes all of it or wants to be called again with the same bytes (SSL_write(3): no partial write).
            self.held = loop.keep(frame)
        except OSError:
            return News.TUNNEL_BROKEN
        else:
            if not is_last and self.held is None:
                return None
        self.has_ended = is_last
        return News.CHANGED

    def flush(self) -> News | None:
        """Write again what is held."""
        held = self.held
        assert held is not None
        try:
            self.send(held)
        except _WANT:
            return None
        except OSError:
            return News.TUNNEL_BROKEN
        self.held = None
        self._loop.give_back(held)
        return News.CHANGED

    def send(self, frame: memoryview) -> None:
        """Write ``frame``, behind what is in the gatherer still: first of all ``held``; raises as SSL_write does."""
        gatherer = self._gatherer
        if gatherer is None or not gatherer.is_begun:
            self._tls_write(frame)
        elif not gatherer.write(frame):
            raise ssl.SSLWantWriteError

    def _write_big(self, frame: memoryview) -> None:
        if self._gatherer is None:
            self._gatherer = gatherer(self._tls)
            if self._gatherer is None:
                self._tls_write(frame)
                return
        if not self._gatherer.write(frame):
            self.held = _IN_GATHERER

    @property
    def held_bytes(self) -> int:
        """What was read and is not in the kernel's hands."""
        if self.held is None:
            return 0
        return len(self.held) or (0 if self._gatherer is None else self._gatherer.unsent_bytes)
