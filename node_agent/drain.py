"""Going down without losing anybody: stop taking new connections, let the running ones end.

serving --begin--> draining (idle tunnels closed, nothing new) --all ended or deadline--> gone
"""

from math import inf
from types import TracebackType

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

    def idle(self, at_most_s: float = inf) -> "Idle":
        """A block in which nothing would be lost by stopping; it is cancelled when draining begins, or after a time.

        The block falls through silently then: its caller sees what it sees when
        there is nothing more to come.
        """
        return Idle(self, at_most_s)

    def enter(self, scope: trio.CancelScope) -> None:
        """Called by an idle block."""
        self._idle.add(scope)
        if self.begun.is_set():
            scope.cancel()

    def leave(self, scope: trio.CancelScope) -> None:
        """Called by an idle block."""
        self._idle.discard(scope)


class Idle:
    """The block that ``Drain.idle`` returns; a class, because one is entered for every connection."""

    __slots__ = ("_drain", "_scope")

    def __init__(self, drain: Drain, at_most_s: float) -> None:
        self._drain = drain
        self._scope = trio.CancelScope(deadline=trio.current_time() + at_most_s)

    def __enter__(self) -> None:
        self._scope.__enter__()
        self._drain.enter(self._scope)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._drain.leave(self._scope)
        return bool(self._scope.__exit__(kind, error, trace))
