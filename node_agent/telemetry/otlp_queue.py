"""What waits to be sent to a collector, and the thread that sends it.

Whoever has something puts it into a bounded queue and goes on: a full queue
drops it, and counts that.  A collector that is down or slow therefore costs the
memory of one queue and nothing else.

    gathering --enough, or a second--> sending --taken--> gathering
    sending --refused, or no answer--> pausing (1 s, doubling to 30) --> sending the next ones

A batch that could not be sent after the retries of OpenTelemetry's exporter is
dropped and counted: newer ones wait behind it.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Final, Generic, TypeVar

_LOG: Final = logging.getLogger("ringfence.otlp")

T = TypeVar("T")

Send = Callable[[list[T]], str | None]
"""Sends a batch, however long that takes within its own bounds; returns why it was not taken."""

_MAX_ITEMS: Final = 4096
_BATCH_ITEMS: Final = 256  # of a kilobyte each: a request costs as much as ten of them
_GATHER_S: Final = 1.0
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0


class OtlpQueue(Generic[T]):
    """``exported`` and ``dropped`` only grow; their sum is what was ``put``, but for what still waits."""

    def __init__(
        self, *, what: str, send: Send[T], abort: Callable[[], None], max_items: int = _MAX_ITEMS, name: str = "otlp"
    ) -> None:
        """``what`` is told in the log: ``spans to URL``; ``abort`` ends retries of ``send`` from another thread."""
        self.exported = 0
        self.dropped = 0
        self._what = what
        self._send = send
        self._abort = abort
        self._max_items = max_items
        self._queue: deque[T] = deque()
        self._closed = False
        self._changed = threading.Condition(threading.Lock())
        self._problem: str | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def problem(self) -> str | None:
        """What is being lost now, and why; for operators."""
        return None if self._problem is None else f"{self._what} are being lost: {self._problem}"

    def put(self, item: T) -> None:
        """Queue ``item``, or drop and count it.  Never waits for the collector."""
        with self._changed:
            if self._closed or len(self._queue) >= self._max_items:
                self.dropped += 1
                return
            self._queue.append(item)
            if len(self._queue) in {1, _BATCH_ITEMS}:
                self._changed.notify()

    def close(self, patience_s: float) -> None:
        """Send what is queued, for at most ``patience_s``; the rest is dropped.  May be called twice."""
        until = time.monotonic() + patience_s
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(patience_s * 3 / 4)
        if self._thread.is_alive():
            self._abort()
            self._thread.join(max(0.0, until - time.monotonic()))
        with self._changed:
            self.dropped += len(self._queue)
            self._queue.clear()

    def _run(self) -> None:
        pause_s = 0.0
        while batch := self._take(pause_s):
            problem = self._send_whatever_happens(batch)
            with self._changed:
                if problem is None:
                    self.exported += len(batch)
                else:
                    self.dropped += len(batch)
            pause_s = 0.0 if problem is None else min(max(2 * pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
            self._tell(problem)

    def _take(self, pause_s: float) -> list[T]:
        """Wait for a batch, the first of which may be a second old; nothing when it is closed and empty."""
        with self._changed:
            if pause_s:
                self._changed.wait_for(lambda: self._closed, pause_s)
            self._changed.wait_for(lambda: self._queue or self._closed)
            self._changed.wait_for(lambda: len(self._queue) >= _BATCH_ITEMS or self._closed, _GATHER_S)
            batch = list(islice(self._queue, _BATCH_ITEMS))
            for _ in batch:
                self._queue.popleft()
            return batch

    def _send_whatever_happens(self, batch: list[T]) -> str | None:
        try:
            return self._send(batch)
        except Exception as error:  # a bug, ours or a library's, ends this batch and not the thread
            _LOG.exception("%s can not be made", self._what)
            return repr(error)

    def _tell(self, problem: str | None) -> None:
        was_failing, self._problem = self._problem is not None, problem
        if problem is not None and not was_failing:
            _LOG.warning(
                "can not send %s: %s; connections are not affected, what is lost is counted", self._what, problem
            )
        elif problem is None and was_failing:
            _LOG.info("%s are sent again", self._what)
