"""Tasks that serve connections, one after the other.

A task of its own and a cancel scope of its own would cost a connection more than
most have to say: both are kept for the next one.  A scope that was cancelled is
used up, and its task takes another.
"""

from collections.abc import Awaitable, Callable
from typing import ClassVar, Final

import outcome
import trio

_MOST_RESTING: Final = 64  # of the process, about 3 KB each

Story = Callable[[trio.CancelScope], Awaitable[None]]
"""Serves one connection, to its end; who cancels the scope ends it.  Only for as long as it runs."""


class Crew:
    """The tasks of ``nursery`` that serve connections.  Those that rest end with it, or by ``dismiss``."""

    _resting_count: ClassVar = 0  # of all crews

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._resting: list[trio.lowlevel.Task] = []
        self._is_dismissed = False

    def serve(self, story: Story) -> None:
        """Have ``story`` run, from the next turn of the run loop on."""
        if self._resting:
            Crew._resting_count -= 1
            trio.lowlevel.reschedule(self._resting.pop(), outcome.Value(story))
        else:
            self._nursery.start_soon(self._work, story)

    def dismiss(self) -> None:
        """Let nobody rest any more: the nursery ends when the last story does."""
        self._is_dismissed = True
        Crew._resting_count -= len(self._resting)
        while self._resting:
            trio.lowlevel.reschedule(self._resting.pop(), outcome.Value(None))

    async def _work(self, story: Story) -> None:
        current: Story | None = story
        following: Story | None = story
        del story
        while following is not None:
            with trio.CancelScope() as scope:
                while following is not None:
                    current, following = following, None
                    await current(scope)
                    current = None  # while we rest nothing of it is held
                    if not scope.cancel_called:
                        following = await self._rest()
            current = None
            if scope.cancel_called:
                following = await self._rest()

    async def _rest(self) -> Story | None:
        """Wait for the next connection; None if there is to be none."""
        if self._is_dismissed or Crew._resting_count >= _MOST_RESTING:
            return None
        task = trio.lowlevel.current_task()

        def leave(_: object) -> trio.lowlevel.Abort:
            self._resting.remove(task)
            Crew._resting_count -= 1
            return trio.lowlevel.Abort.SUCCEEDED

        self._resting.append(task)
        Crew._resting_count += 1
        following: Story | None = await trio.lowlevel.wait_task_rescheduled(leave)
        return following
