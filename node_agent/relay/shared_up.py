"""What the streams of a shared tunnel have to say in one turn of the loop, gathered and written at its end.

One TLS record, one packet and one wake-up of the peer for all of them.

    gathering --write blocked--> blocked (no stream reads its application) --written--> gathering

A tunnel that has nothing to say owns no buffer.
"""

import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from node_agent.frames import MAX_CONTROL_BYTES
from node_agent.relay.loop import ARENA_BYTES, RelayLoop
from node_agent.stream_frames import MAX_STREAM_DATA_BYTES, STREAM_HEADER_BYTES

if TYPE_CHECKING:
    from node_agent.relay.stream import Stream

FULL: Final = ARENA_BYTES - 2 * (STREAM_HEADER_BYTES + max(MAX_STREAM_DATA_BYTES, MAX_CONTROL_BYTES))
"""From here on there is no room for a frame of DATA and what follows it."""
_MAX_QUEUED_BYTES: Final = 1024 * 1024  # of control frames, while a peer does not read: thousands of them
_MOST_SPARE: Final = 64  # of the process; they are touched as far as something was put into them, mostly a page
_NOTHING: Final = memoryview(b"")
_WANT: Final = (ssl.SSLWantWriteError, ssl.SSLWantReadError)


class SharedUp:
    """One half of a shared tunnel; does not own it.

    A stream may put a frame of DATA into ``out`` at ``end`` (``out_body`` is what
    is behind a first header), and what follows it, if ``make_room`` says so,
    after ``begins`` if ``end`` was 0; else it comes to be ``waiting``.  ``on_blocked``
    and ``on_broken`` are called when a write could not be done now, or ever.
    """

    __slots__ = (
        "_held",
        "_is_over",
        "_loop",
        "_on_blocked",
        "_on_broken",
        "_queue",
        "_spare",
        "_write",
        "begins",
        "end",
        "out",
        "out_body",
        "waiting",
    )

    def __init__(
        self,
        *,
        loop: RelayLoop,
        tls_write: Callable[[memoryview], int],
        on_blocked: Callable[[], None],
        on_broken: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._write = tls_write
        self._on_blocked = on_blocked
        self._on_broken = on_broken
        self._held: memoryview | None = None
        self._queue = bytearray()
        self._is_over = False
        self._spare = loop.spare_outs
        self.begins = loop.flusher(self.flush)
        self.out = self.out_body = _NOTHING
        self.end = 0
        self.waiting: list[Stream] = []

    @property
    def is_blocked(self) -> bool:
        """Whether a write has to be done again before anything else is written."""
        return self._held is not None

    def make_room(self) -> bool:
        """Make room for one frame of DATA, and what follows it; False while the tunnel is blocked."""
        if self.end > FULL:
            self.flush()
        if not self.end:
            if self._held is not None or self._is_over:
                return False
            if not self.out:
                self.out, self.out_body = self._spare.pop() if self._spare else self._buffer()
        return True

    def say(self, frame: bytes) -> None:
        """Send a frame in its turn."""
        if not self.make_room():
            self._queue += frame
            if len(self._queue) > _MAX_QUEUED_BYTES and not self._is_over:
                self._loop.call_soon(self._on_broken)
            return
        end = self.end
        if not end:
            self.begins()
        self.end = after = end + len(frame)
        self.out[end:after] = frame

    def flush(self) -> None:
        """Write what was gathered."""
        end = self.end
        if not end or self._is_over:
            return
        out, self.out, self.end = self.out, _NOTHING, 0
        try:
            self._write(out[:end])
        except _WANT:
            # OpenSSL writes all of it or wants to be called again with the same bytes (SSL_write(3): no partial write).
            self._held = out[:end]
            self._on_blocked()
        except OSError:
            self._on_broken()
        else:
            if len(self._spare) < _MOST_SPARE:
                self._spare.append((out, self.out_body))

    def _buffer(self) -> tuple[memoryview, memoryview]:
        out = self._loop.borrow()
        return out, out[STREAM_HEADER_BYTES:]

    def write_again(self) -> bool:
        """Write what was blocked; returns whether all of it is out.  Those who wait may go on then."""
        while (held := self._held) is not None:
            try:
                self._write(held)
            except _WANT:
                return False
            except OSError:
                self._on_broken()
                return False
            self._loop.give_back(held)
            self._held = memoryview(bytes(self._queue)) if self._queue else None
            self._queue.clear()
        waiting, self.waiting = self.waiting, []
        for stream in waiting:
            stream.go_on()
        return True

    def stop(self) -> None:
        """The tunnel is over."""
        self._is_over = True
        self._held = None
        self.out = self.out_body = _NOTHING
        self.end = 0
        self.waiting.clear()
