"""A task that waits for the verdict on the stream that it has opened."""

import outcome
import trio

from node_agent.relay.loop import RelayLoop
from node_agent.relay.stream import Stream


class Asking:
    """Ends by the verdict, by the end of the stream, by ``give_up`` or by cancellation, whichever is first.

    ``due_at`` is monotonic seconds; whoever made it calls ``give_up`` then.
    """

    __slots__ = ("_is_given_up", "_stream", "_task", "due_at")

    def __init__(self, stream: Stream, *, due_at: float) -> None:
        """``stream`` has just been opened by the task that calls ``answer`` now."""
        self._stream = stream
        self._task = trio.lowlevel.current_task()
        self._is_given_up = False
        self.due_at = due_at
        stream.on_verdict = self._answered

    async def answer(self) -> bytes | None:
        """Wait for the payload of the VERDICT, or None; raises trio.TooSlowError."""
        answer: bytes | None = await trio.lowlevel.wait_task_rescheduled(self._cancel)
        return answer

    def give_up(self, loop: RelayLoop) -> None:
        """The time is over, unless the answer is under way; called from within the loop."""
        if self._stream.on_verdict is not None and not self._is_given_up:
            self._is_given_up = True
            self._take_back()
            loop.report_later(self._too_slow)

    def _answered(self, payload: bytes | None) -> None:
        trio.lowlevel.reschedule(self._task, outcome.Value(payload))

    def _too_slow(self) -> None:
        trio.lowlevel.reschedule(self._task, outcome.Error(trio.TooSlowError()))

    def _cancel(self, _: object) -> trio.lowlevel.Abort:
        if self._stream.on_verdict is None or self._is_given_up:
            return trio.lowlevel.Abort.FAILED  # what ends it is under way, and must be taken
        self._take_back()
        return trio.lowlevel.Abort.SUCCEEDED

    def _take_back(self) -> None:
        self._stream.on_verdict = _nobody_waits  # not None: the answer may be on its way, and is in order
        self._stream.cut(None)


def _nobody_waits(_: bytes | None) -> None:
    pass
