"""Ends a wait for a database server that does not answer: one that is stuck, not one that is gone.

A server that is gone resets its connections, and the kernel notices when its
machine is gone; but a process that is stopped, or waits for a disk that hangs,
keeps its connection and says nothing, and libpq waits for ever.  So one thread
looks now and then whether the wait has become too long, and shuts the
connection's socket down; libpq then reports a lost connection.
"""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_LOOK_S: Final = 0.25


class Watchdog:
    """Watches one connection; ``stop`` ends its thread."""

    def __init__(self, *, limit_s: float) -> None:
        self._limit_s = limit_s
        self._watched: tuple[int, float] | None = None  # socket and deadline (time.monotonic)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def watching(self, descriptor: int) -> Iterator[None]:
        """The wait for an answer on ``descriptor`` must not take longer than the limit."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._look, name="database watchdog", daemon=True)
            self._thread.start()
        with self._lock:
            self._watched = descriptor, time.monotonic() + self._limit_s
        try:
            yield
        finally:
            with self._lock:
                self._watched = None

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _look(self) -> None:
        while not self._stopped.wait(_LOOK_S):
            # The lock keeps the descriptor from being closed, and used for something else, in between.
            with self._lock:
                if self._watched is not None and time.monotonic() > self._watched[1]:
                    _shut_down(self._watched[0])
                    self._watched = None


def _shut_down(descriptor: int) -> None:
    connection = socket.socket(fileno=descriptor)
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it is gone already
    finally:
        connection.detach()  # libpq closes it
