"""Going down without losing anybody: stop taking new connections, let the running ones end.

serving --begin--> draining (idle tunnels closed, nothing new) --all ended or deadline--> gone
"""

from collections.abc import Iterator
from contextlib import contextmanager

import trio


class Drain:
    """Whether the agent is going down, and the waits that need not go on then."""

    def __init__(self) -> None:
        self.begun = trio.Event()
        self._idle: set[trio.CancelScope] = set()

    def begin(self) -> None:
        """Start draining: every ``idle`` block ends now."""
        self.begun.set()
        for scope in list(self._idle):
            scope.cancel()

    @contextmanager
    def idle(self) -> Iterator[None]:
        """A block in which nothing would be lost by stopping; it is cancelled when draining begins.

        The block falls through silently then: its caller sees what it sees when
        there is nothing more to come.
        """
        with trio.CancelScope() as scope:
            if self.begun.is_set():
                scope.cancel()
            self._idle.add(scope)
            try:
                yield
            finally:
                self._idle.discard(scope)
