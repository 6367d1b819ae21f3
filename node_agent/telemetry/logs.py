"""Logging that never makes the data path wait.

Access records go to stdout, everything else to stderr, one JSON object a line.
A handler only formats the line and puts it in a queue of bounded size; a thread
writes it (line_writer.py).  When whoever reads our output stalls, the queue
fills and further lines are dropped and counted
(``ringfence_log_lines_dropped_total``).  At a normal exit the queue is written
out, for at most five seconds.  Other places for access records are added to
these by exports.py.

Where worker processes share the streams (node_agent/workers), a lock keeps their
lines apart.  It is flock(2)'s, on an unnamed file for each stream, so it ends
with the process that holds it.
"""

import atexit
import json
import logging
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from node_agent.telemetry.access_log import ACCESS_LOGGER
from node_agent.telemetry.line_writer import Descriptor, LineWriter
from node_agent.telemetry.log_levels import LogLevels, apply
from node_agent.telemetry.metrics import Metrics

_FLUSH_S: Final = 5.0
_STDOUT: Final = 1
_STDERR: Final = 2


class Logging:
    """What :func:`configure_logging` set up.  ``close`` writes out what is queued; it may be called twice."""

    def __init__(self, writers: dict[str, LineWriter]) -> None:
        self._writers = writers

    def add(self, stream: str, writer: LineWriter) -> None:
        """Count the lines of one more writer, before ``register``, and close it with the others."""
        self._writers[stream] = writer

    def register(self, metrics: Metrics) -> None:
        """Show how many lines were dropped."""
        metrics.counter(
            "ringfence_log_lines_dropped_total",
            "Log lines dropped because nobody read them in time, or because they could not be written.",
            lambda: {(stream,): writer.dropped_lines for stream, writer in self._writers.items()},
            labels=("stream",),
        )

    def problems(self) -> list[str]:
        """Where lines are being lost now, and why; for operators."""
        return [
            f"lines to {'the file of [access_log]' if stream == 'file' else stream} are being lost: {writer.problem}"
            for stream, writer in self._writers.items()
            if writer.problem
        ]

    def refresh(self) -> None:
        """Let the writers follow files that were moved (SIGHUP)."""
        for writer in set(self._writers.values()):
            writer.refresh()

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
    records_to_stdout: bool = True,
) -> Logging:
    """Send the process's logs where they belong; once, at start.

    ``locks`` are those of ``make_stream_locks`` where other processes write to
    the same streams; ``worker`` is told in every line but the access records.

    Raises:
        ConfigError: ``level`` is none.
    """
    apply(LogLevels(level=level))
    stdout_lock, stderr_lock = locks or (None, None)
    errors = LineWriter(Descriptor(stderr_fd, lock_fd=stderr_lock), name="stderr")
    # One file for both (`>log 2>&1`): one writer, so that lines never mix.
    same = os.path.samestat(os.fstat(stdout_fd), os.fstat(stderr_fd))
    records = errors if same else LineWriter(Descriptor(stdout_fd, lock_fd=stdout_lock), name="stdout")

    root = logging.getLogger()
    root.handlers[:] = [QueueingHandler(errors, JsonFormatter(worker=worker))]
    access = logging.getLogger(ACCESS_LOGGER)
    access.setLevel(logging.INFO)
    access.propagate = False
    access.handlers[:] = [record_handler(records)] if records_to_stdout else [logging.NullHandler()]
    logging.captureWarnings(capture=True)
    # What no line of ours shows need not be looked up for each of them (Python's "Logging HOWTO", Optimization).
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False

    configured = Logging({"stdout": records, "stderr": errors})
    atexit.register(configured.close)
    return configured


def record_handler(writer: LineWriter) -> logging.Handler:
    """Writes access records, which are lines of JSON already."""
    return _RecordHandler(writer, logging.Formatter("%(message)s"))


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


class QueueingHandler(logging.Handler):
    """Formats in the thread that logs, and leaves the writing to ``writer``."""

    def __init__(self, writer: LineWriter, formatter: logging.Formatter) -> None:
        super().__init__()
        self._writer = writer
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._writer.write((self.format(record) + "\n").encode("utf-8", "backslashreplace"))
        except Exception:
            self.handleError(record)


class _RecordHandler(QueueingHandler):
    """Takes access records many at a time, too (outlet.py)."""

    def emit_lines(self, texts: Sequence[str]) -> None:
        self._writer.write(("\n".join(texts) + "\n").encode("utf-8", "backslashreplace"), lines=len(texts))
