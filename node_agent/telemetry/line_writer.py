"""A thread that writes lines from a bounded queue, so that whoever has a line to write never waits.

When what takes the lines stalls, the queue fills, and further lines are dropped
and counted: bytes of connections are worth more than lines about them.

Why a thread: a pipe or a disk may block in ``write`` for as long as it likes,
and stdout can not be made non-blocking without changing it for every other
process that shares it.
"""

import fcntl
import os
import threading
import time
from collections import deque
from typing import Final, Protocol

_MAX_QUEUED_BYTES: Final = 4 * 1024 * 1024  # about 6,000 access records: seconds of a busy node
_MAX_WRITE_BYTES: Final = 256 * 1024
_GATHER_S: Final = 0.01  # one wake-up of the thread, and one write, for all lines of 10 ms


class Target(Protocol):
    """Takes whole lines; called by one thread at a time."""

    def write(self, chunk: bytes) -> None:
        """Write all of it, as long as that takes; raises OSError if it is lost."""

    def refresh(self) -> None:
        """Somebody has moved things: let go of what is old.  Never raises."""


class Descriptor:
    """A file descriptor, which it does not own.

    Where several processes share what it leads to, a lock keeps their lines
    apart: a write to a pipe is whole only up to PIPE_BUF, 4 KiB (pipe(7)).
    """

    def __init__(self, fd: int, *, lock_fd: int | None = None) -> None:
        """``lock_fd``: a file that every process locks while it writes to what ``fd`` leads to."""
        self._fd = fd
        # An open file of our own: the lock belongs to the open file, and descriptors that were passed share one.
        self._lock_fd = None if lock_fd is None else os.open(f"/proc/self/fd/{lock_fd}", os.O_RDWR | os.O_CLOEXEC)

    def write(self, chunk: bytes) -> None:
        """Write all of it; raises OSError."""
        view = memoryview(chunk)
        try:
            if self._lock_fd is not None:
                fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
            while view:
                try:
                    view = view[os.write(self._fd, view) :]
                except BlockingIOError:  # somebody made the shared descriptor non-blocking
                    time.sleep(_GATHER_S)
        finally:
            if self._lock_fd is not None:
                fcntl.flock(self._lock_fd, fcntl.LOCK_UN)

    def refresh(self) -> None:
        """Nothing: who redirected the stream has to redirect it again."""


class LineWriter:
    """Writes lines to ``target`` from a thread.

    ``write`` never blocks for longer than it takes to append to a queue.
    """

    def __init__(self, target: Target, *, name: str = "", max_queued_bytes: int = _MAX_QUEUED_BYTES) -> None:
        self.dropped_lines = 0
        self.problem = ""  # why lines are being lost now
        self._target = target
        self._max_queued_bytes = max_queued_bytes
        self._queue: deque[tuple[bytes, int]] = deque()  # with how many lines it is
        self._queued_bytes = 0
        self._refresh = False
        self._closed = False
        self._finished = False
        self._lock = threading.Lock()  # that of ``_changed``, through which it would take twice as long
        self._changed = threading.Condition(self._lock)
        self._thread = threading.Thread(target=self._run, name=f"log-{name}", daemon=True)
        self._thread.start()

    def write(self, chunk: bytes, *, lines: int = 1) -> None:
        """Queue whole lines, or drop and count them when the queue is full."""
        with self._lock:
            if not self._finished:
                if self._queued_bytes + len(chunk) > self._max_queued_bytes:
                    self.dropped_lines += lines
                    self.problem = "they are not taken as fast as they come"
                    return
                if not self._queue:
                    self._changed.notify()
                self._queue.append((chunk, lines))
                self._queued_bytes += len(chunk)
                return
        self._write_out(chunk, lines)

    def refresh(self) -> None:
        """Let the target follow what was moved, soon."""
        with self._changed:
            self._refresh = True
            self._changed.notify()

    def close(self, patience_s: float) -> None:
        """Write out the queue, then write later lines directly.  Gives up after ``patience_s``."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(patience_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._closed and not self._refresh:
                    self._changed.wait()
                refresh, self._refresh = self._refresh, False
                if not self._queue and self._closed:
                    self._finished = True
                    return
                closed = self._closed
            if refresh:
                self._target.refresh()
            if not closed:
                time.sleep(_GATHER_S)
            self._write_out(*self._take())

    def _take(self) -> tuple[bytes, int]:
        with self._changed:
            taken: list[bytes] = []
            size = lines = 0
            while self._queue and (not taken or size + len(self._queue[0][0]) <= _MAX_WRITE_BYTES):
                chunk, lines_here = self._queue.popleft()
                taken.append(chunk)
                size += len(chunk)
                lines += lines_here
            self._queued_bytes -= size
            return b"".join(taken), lines

    def _write_out(self, chunk: bytes, lines: int) -> None:
        if not lines:
            return
        try:
            self._target.write(chunk)
        except OSError as error:
            self.dropped_lines += lines  # a full disk, a closed pipe
            self.problem = error.strerror or str(error)
        else:
            self.problem = ""
