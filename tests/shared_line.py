"""TLS that sends and receives at once in one thread: what the peer of shared tunnels stands on.

While it waits to send it takes in what comes, and keeps it without a bound, so
it can not hold up the other end; whoever wants it held up just does not call it.
"""

import selectors
import socket
import ssl
import struct
import time
from typing import Final, NamedTuple

from tests.mesh_lab import DEADLINE_S

_CHUNK: Final = 1 << 16


class LineFrame(NamedTuple):
    """One frame as it was received; ``stream`` is 0 in a tunnel without stream numbers."""

    kind: int
    stream: int
    payload: bytes


class Line:
    """One TLS connection of frames, with 4-byte headers until ``number_frames``; owns it."""

    def __init__(self, tls: ssl.SSLSocket) -> None:
        self.tls = tls
        self.protocol = tls.selected_alpn_protocol()
        self.ending: str | None = None
        """How it ended: ``EOF``, or the name of the error; None while it has not."""
        tls.setblocking(False)
        self._header_size = 4
        self._outgoing = bytearray()
        self._incoming = bytearray()

    def number_frames(self) -> None:
        """From here on frames have a stream number."""
        self._header_size = 8

    def send(self, kind: int, payload: bytes = b"", *, length: int | None = None) -> None:
        """Send a frame without a stream number; ``length`` lies about the payload's."""
        self.send_raw(struct.pack(">I", kind << 24 | (len(payload) if length is None else length)) + payload)

    def send_raw(self, data: bytes) -> None:
        """Send bytes, whatever they are; what comes meanwhile is kept.

        When the other end closes, what it has not taken is dropped: that it has
        closed, and what it said before, is told by reading.
        """
        self._outgoing += data
        limit = time.monotonic() + DEADLINE_S
        while self._outgoing and self.ending is None:
            self.turn(limit, "the other end to take what is sent")
        self._outgoing.clear()

    def queue(self, data: bytes) -> None:
        """Send bytes as far as they go whenever something waits."""
        self._outgoing += data

    def read(self, what: str = "a frame", *, within_s: float = DEADLINE_S) -> LineFrame | None:
        """The next frame; None when the tunnel has ended, in whatever way."""
        limit = time.monotonic() + within_s
        while (frame := self._next_frame()) is None:
            if self.ending is not None:
                return None
            self.turn(limit, what)
        return frame

    def read_or_quiet(self, quiet_s: float) -> LineFrame | None:
        """The next frame; None when none has come for so long, or when the tunnel has ended."""
        try:
            return self.read(within_s=quiet_s)
        except TimeoutError:
            return None

    def is_closed_without_a_frame(self) -> bool:
        """Whether the other end closes, and says nothing before."""
        return self.read("the end of the tunnel") is None and not self._incoming

    def turn(self, limit: float, what: str) -> None:
        """Wait until something can be sent or received, and do it; raises TimeoutError at ``limit``."""
        if not self._move():
            left = limit - time.monotonic()
            if left <= 0 or not self._wait(left):
                raise TimeoutError(f"waited for {what}")

    def shut_down(self) -> None:
        """Say goodbye as TLS does, and close."""
        self.tls.settimeout(DEADLINE_S)
        try:
            self.tls.unwrap()
        except OSError:
            pass
        self.close()

    def cut(self) -> None:
        """Close with a TCP RST."""
        self.tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self.ending = self.ending or "closed by us"
        self.tls.close()

    def _next_frame(self) -> LineFrame | None:
        if len(self._incoming) < self._header_size:
            return None
        (word,) = struct.unpack_from(">I", self._incoming)
        end = self._header_size + (word & 0xFFFFFF)
        if len(self._incoming) < end:
            return None
        stream = struct.unpack_from(">I", self._incoming, 4)[0] if self._header_size == 8 else 0
        payload = bytes(self._incoming[self._header_size : end])
        del self._incoming[:end]
        return LineFrame(word >> 24, stream, payload)

    def _move(self) -> bool:
        """Send and receive what can be now; returns whether anything could."""
        moved = False
        try:
            while self._outgoing:
                sent = self.tls.send(self._outgoing[:_CHUNK])
                del self._outgoing[:sent]
                moved = True
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError:
            self._outgoing.clear()  # reading tells how it ended, and what came before
        try:
            data = self.tls.recv(_CHUNK)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return moved
        except OSError as error:
            self.ending = type(error).__name__
            return True
        if not data:
            self.ending = "EOF"
        self._incoming += data
        return True

    def _wait(self, timeout_s: float) -> bool:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._outgoing else 0)
        with selectors.DefaultSelector() as selector:
            selector.register(self.tls, events)
            return bool(selector.select(timeout_s))
