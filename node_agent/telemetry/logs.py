"""Logging that never makes the data path wait.

Access records go to stdout, everything else to stderr, one JSON object a line.
A handler only formats the line and puts it in a queue of bounded size; a thread
writes it.  When whoever reads our output stalls, the queue fills and further
lines are dropped and counted (``ringfence_log_lines_dropped_total``): bytes of
connections are worth more than lines about them.  At a normal exit the queue is
written out, for at most five seconds.

Why a thread: a pipe or a disk may block in ``write`` for as long as it likes,
and stdout can not be made non-blocking without changing it for every other
process that shares it.

Where worker processes share the streams (node_agent/workers), a lock keeps their
lines apart: a write to a pipe is whole only up to PIPE_BUF, 4 KiB (pipe(7)).
The lock is flock(2)'s, on an unnamed file for each stream, so it ends with the
process that holds it.
"""

import atexit
import fcntl
import json
import logging
import os
import threading
import time
from collections import deque
from datetime import UTC, datetime
from typing import Final

from node_agent.errors import ConfigError
from node_agent.telemetry.access_log import ACCESS_LOGGER
from node_agent.telemetry.metrics import Metrics

LEVELS: Final = ("debug", "info", "warning", "error")
_MAX_QUEUED_BYTES: Final = 4 * 1024 * 1024  # about 6,000 access records: seconds of a busy node
_MAX_WRITE_BYTES: Final = 256 * 1024
_GATHER_S: Final = 0.01  # one wake-up of the thread, and one write, for all lines of 10 ms
_FLUSH_S: Final = 5.0
_STDOUT: Final = 1
_STDERR: Final = 2


class Logging:
    """What :func:`configure_logging` set up.  ``close`` writes out what is queued; it may be called twice."""

    def __init__(self, writers: dict[str, "LineWriter"]) -> None:
        self._writers = writers

    def register(self, metrics: Metrics) -> None:
        """Show how many lines were dropped."""
        metrics.counter(
            "ringfence_log_lines_dropped_total",
            "Log lines dropped because nobody read them in time.",
            lambda: {(stream,): writer.dropped_lines for stream, writer in self._writers.items()},
            labels=("stream",),
        )

    def close(self) -> None:
        """Write out what is queued, for at most five seconds; later lines are written at once."""
        for writer in set(self._writers.values()):
            writer.close(_FLUSH_S)


def make_stream_locks() -> tuple[int, int]:
    """Return descriptors of two unnamed files, for stdout and stderr, that all processes of the agent share."""
    return os.memfd_create("ringfence-stdout-lock"), os.memfd_create("ringfence-stderr-lock")


def configure_logging(
    level: str,
    *,
    stdout_fd: int = _STDOUT,
    stderr_fd: int = _STDERR,
    locks: tuple[int, int] | None = None,
    worker: int | None = None,
) -> Logging:
    """Send the process's logs where they belong; once, at start.

    ``locks`` are those of ``make_stream_locks`` where other processes write to
    the same streams; ``worker`` is told in every line but the access records.

    Raises:
        ConfigError: ``level`` is not one of :data:`LEVELS`.
    """
    set_log_level(level)
    stdout_lock, stderr_lock = locks or (None, None)
    errors = LineWriter(stderr_fd, lock_fd=stderr_lock)
    # One file for both (`>log 2>&1`): one writer, so that lines never mix.
    same = os.path.samestat(os.fstat(stdout_fd), os.fstat(stderr_fd))
    records = errors if same else LineWriter(stdout_fd, lock_fd=stdout_lock)

    root = logging.getLogger()
    root.handlers[:] = [_QueueingHandler(errors, JsonFormatter(worker=worker))]
    access = logging.getLogger(ACCESS_LOGGER)
    access.setLevel(logging.INFO)
    access.propagate = False
    access.handlers[:] = [_QueueingHandler(records, logging.Formatter("%(message)s"))]
    logging.captureWarnings(capture=True)
    # What no line of ours shows need not be looked up for each of them (Python's "Logging HOWTO", Optimization).
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False

    configured = Logging({"stdout": records, "stderr": errors})
    atexit.register(configured.close)
    return configured


def set_log_level(level: str) -> None:
    """Choose what is logged on stderr; access records are always written.

    Raises:
        ConfigError: ``level`` is not one of :data:`LEVELS`.
    """
    if level not in LEVELS:
        raise ConfigError(f"log level {level!r} is unknown; use one of {', '.join(LEVELS)}")
    logging.getLogger().setLevel(level.upper())


class JsonFormatter(logging.Formatter):
    """One JSON object a line; ASCII only, so that control characters are escaped."""

    def __init__(self, *, worker: int | None = None) -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        """Render ``record``; a traceback becomes the text field ``exception``."""
        at = datetime.fromtimestamp(record.created, UTC)
        fields: dict[str, object] = {
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if self._worker is not None:
            fields["worker"] = self._worker
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)


class _QueueingHandler(logging.Handler):
    def __init__(self, writer: "LineWriter", formatter: logging.Formatter) -> None:
        super().__init__()
        self._writer = writer
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._writer.write((self.format(record) + "\n").encode("utf-8", "backslashreplace"))
        except Exception:
            self.handleError(record)


class LineWriter:
    """Writes lines to a file descriptor, which it does not own, from a thread.

    ``write`` never blocks for longer than it takes to append to a queue.
    """

    def __init__(self, fd: int, *, max_queued_bytes: int = _MAX_QUEUED_BYTES, lock_fd: int | None = None) -> None:
        """``lock_fd``: a file that every process locks while it writes to what ``fd`` leads to."""
        self.dropped_lines = 0
        self._fd = fd
        # An open file of our own: the lock belongs to the open file, and descriptors that were passed share one.
        self._lock_fd = None if lock_fd is None else os.open(f"/proc/self/fd/{lock_fd}", os.O_RDWR | os.O_CLOEXEC)
        self._max_queued_bytes = max_queued_bytes
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._closed = False
        self._finished = False
        self._changed = threading.Condition(threading.Lock())
        self._thread = threading.Thread(target=self._run, name=f"log-{fd}", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        """Queue ``line``, or drop and count it when the queue is full."""
        with self._changed:
            if not self._finished:
                if self._queued_bytes + len(line) > self._max_queued_bytes:
                    self.dropped_lines += 1
                    return
                if not self._queue:
                    self._changed.notify()
                self._queue.append(line)
                self._queued_bytes += len(line)
                return
        self._write_out(line, 1)

    def close(self, patience_s: float) -> None:
        """Write out the queue, then write later lines directly.  Gives up after ``patience_s``."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(patience_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._closed:
                    self._changed.wait()
                if not self._queue:
                    self._finished = True
                    return
                closed = self._closed
            if not closed:
                time.sleep(_GATHER_S)
            self._write_out(*self._take())

    def _take(self) -> tuple[bytes, int]:
        with self._changed:
            taken: list[bytes] = []
            size = 0
            while self._queue and (not taken or size + len(self._queue[0]) <= _MAX_WRITE_BYTES):
                taken.append(self._queue.popleft())
                size += len(taken[-1])
            self._queued_bytes -= size
            return b"".join(taken), len(taken)

    def _write_out(self, chunk: bytes, lines: int) -> None:
        view = memoryview(chunk)
        try:
            if self._lock_fd is not None:
                fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
            while view:
                try:
                    view = view[os.write(self._fd, view) :]
                except BlockingIOError:  # somebody made the shared descriptor non-blocking
                    time.sleep(_GATHER_S)
        except OSError:
            self.dropped_lines += lines  # a full disk, a closed pipe: there is nowhere to say so but the counter
        finally:
            if self._lock_fd is not None:
                fcntl.flock(self._lock_fd, fcntl.LOCK_UN)
