"""The end of serving, seen by those who wait for something that may never come."""

from collections.abc import Iterator
from contextlib import contextmanager

import trio


class Drain:
    """Becomes true once; what waits inside ``given_up_at_the_end`` then stops waiting."""

    def __init__(self) -> None:
        self._begun = False
        self._waiting: set[trio.CancelScope] = set()

    def begin(self) -> None:
        """End every wait, also those that begin later."""
        self._begun = True
        for scope in self._waiting:
            scope.cancel()

    @contextmanager
    def given_up_at_the_end(self) -> Iterator[trio.CancelScope]:
        """What is done inside is given up when draining begins."""
        with trio.CancelScope() as scope:
            self._waiting.add(scope)
            if self._begun:
                scope.cancel()
            try:
                yield scope
            finally:
                self._waiting.discard(scope)
