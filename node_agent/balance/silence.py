"""Notice an endpoint that accepts connections and then says nothing: its program hangs.

Sans-I/O: callers pass ``now`` (monotonic seconds).  A kernel accepts for a
program that is stopped, so the connect looks as good as ever.  What tells is
that the connections sent there wait for their first byte while others, to the
same service, get theirs.

Nobody knows how long a program may be silent, so nothing is measured against a
fixed time.  An endpoint is silent if

* connections that were sent there wait for their first byte, and not one of them
  got it;
* longer than is usual for the service: several times its mean and spread, as
  TCP's retransmission timer is made (RFC 6298);
* chance does not explain it, but once in three thousand times (e^-8): the
  service has answered eight connections for each of its endpoints since then, or
  more of them wait than ever go without an answer.  Of a service that answers all
  but one in a hundred, two are enough; of one that answers one in ten, 76.

Where all are silent for long there are no answers, and so no difference.  An
answer ends it at once.  A connection that its client gave up leaves the time it
waited behind, which is forgotten like the latency of a connect that timed out.
One that is wrongly called silent (all that it has are connections whose clients
do not ask for anything) gets another one when the service has had so many
meanwhile that its clients hardly feel it if that one waits, too; of several
silent ones one at a time.

A connection is looked at when its endpoint is about to be chosen, and when it
ends: one that moves bytes pays nothing for it.
"""

from collections import OrderedDict
from math import log
from typing import Final, Protocol

from node_agent.balance.latency import PeakEwma

_ENOUGH: Final = 8
_REMEMBERED: Final = 4096  # connections
_LEAST_PATIENCE_S: Final = 0.25  # below it a busy machine is no different from a program that hangs
_TIMES_USUAL: Final = 3.0
_MEAN_NEWS: Final = 1 / 8  # RFC 6298 section 2: alpha, beta, K
_SPREAD_NEWS: Final = 1 / 4
_SPREADS: Final = 4.0
_LOOKS: Final = 2  # at one endpoint's connections, each time
_TRY_AGAIN_AFTER: Final = 256  # connections to the service: one in so many may be lost to finding out


class Answer(Protocol):
    """A connection, as far as its endpoint's bytes go."""

    @property
    def down_bytes(self) -> int: ...


class Habit:
    """How long the first byte of a service usually takes, and how many connections get one."""

    __slots__ = ("_mean_s", "_recent", "_recently_answered", "_spread_s", "answers", "connections", "tried_at")

    def __init__(self) -> None:
        self._mean_s: float | None = None
        self._spread_s = 0.0
        self._recent = 0
        self._recently_answered = 0
        self.answers = 0
        self.connections = 0
        self.tried_at = 0  # at which of the connections a silent endpoint was tried last

    def began(self) -> None:
        """A connection is up."""
        self.connections += 1
        self._recent += 1
        if self._recent >= _REMEMBERED:
            self._recent //= 2
            self._recently_answered //= 2

    def are_too_many(self, waiting: int) -> bool:
        """Whether chance does not explain that so many wait, going by the others."""
        others = max(self._recent - waiting, self._recently_answered)
        unanswered = (others - self._recently_answered + 1) / (others + 2)  # Laplace's rule of succession
        return self._recently_answered > 0 and -log(unanswered) * waiting >= _ENOUGH

    def answered(self, waited_s: float) -> None:
        """A connection got its first byte; it was seen to wait for so long."""
        self.answers += 1
        self._recently_answered += 1
        if self._mean_s is None:
            self._mean_s, self._spread_s = waited_s, waited_s / 2
        else:
            self._spread_s += (abs(self._mean_s - waited_s) - self._spread_s) * _SPREAD_NEWS
            self._mean_s += (waited_s - self._mean_s) * _MEAN_NEWS

    @property
    def patience_s(self) -> float:
        """What is more than usual."""
        usual_s = (self._mean_s or 0.0) + _SPREADS * self._spread_s
        return max(_LEAST_PATIENCE_S, _TIMES_USUAL * usual_s)


class Waiting:
    """One connection whose first byte nobody has seen yet."""

    __slots__ = ("_answer", "_began_at", "habit", "seen_at")

    def __init__(self, answer: Answer, habit: Habit, now: float) -> None:
        self.habit = habit
        self._answer = answer
        self._began_at = self.seen_at = now  # seen to wait

    @property
    def is_answered(self) -> bool:
        return self._answer.down_bytes > 0

    def teach(self) -> None:
        """It is answered: that is the service's habit."""
        self.habit.answered(self.seen_at - self._began_at)


class Silence:
    """The connections of one endpoint that wait for their first byte.

    Those that were there already when another one was answered (``_earlier``)
    wait for reasons of their own, and say nothing about the endpoint.
    """

    __slots__ = (
        "_answers_before",
        "_before",
        "_earlier",
        "_endpoints",
        "_habit",
        "_is_silent",
        "_left_behind",
        "_since",
        "_waiting",
    )

    def __init__(self, habit: Habit) -> None:
        self._waiting: OrderedDict[Waiting, None] = OrderedDict()
        self._earlier: OrderedDict[Waiting, None] = OrderedDict()
        self._since = 0.0  # when the first of those that wait came
        self._answers_before = 0  # of the service, until then
        self._habit = habit
        self._endpoints = 1
        self._before = 0
        self._is_silent = False
        self._left_behind: PeakEwma | None = None

    def begin(self, waiting: Waiting, *, endpoints: int, now: float) -> None:
        """A connection is up; ``endpoints`` have the service's connections to share."""
        if not self._waiting:
            self._since = now
            self._answers_before = waiting.habit.answers
        self._waiting[waiting] = None
        self._endpoints = endpoints
        self._habit = waiting.habit

    def end(self, waiting: Waiting, now: float) -> None:
        """It is over; harmless if that was known."""
        if waiting in self._earlier:
            self._look_at_earlier(waiting)
            self._earlier.pop(waiting, None)
        elif waiting in self._waiting and waiting.is_answered:
            self._answered(waiting)
        elif waiting in self._waiting:
            if silent_s := self._by_waiting_s(now):
                if self._left_behind is None:
                    self._left_behind = PeakEwma(0.0, now)
                self._left_behind.observe(silent_s, now)
            del self._waiting[waiting]

    def silent_s(self, now: float) -> float:
        """For how long the endpoint has been silent, 0 if it is not."""
        for _ in range(min(_LOOKS, len(self._waiting))):
            each = next(iter(self._waiting))
            if each.is_answered:
                self._answered(each)
                break
            each.seen_at = now
            self._waiting.move_to_end(each)
        for _ in range(min(_LOOKS, len(self._earlier))):
            self._look_at_earlier(next(iter(self._earlier)))
        left_behind_s = 0.0 if self._left_behind is None else self._left_behind.at(now)
        silent_s = max(left_behind_s, self._by_waiting_s(now))
        self._is_silent = silent_s > 0.0
        return silent_s

    @property
    def is_to_be_tried(self) -> bool:
        """Whether the next connection is to find out if it still is."""
        return self._habit.connections - max(self._before, self._habit.tried_at) >= _TRY_AGAIN_AFTER

    def picked(self) -> None:
        """A connection is sent there."""
        self._before = self._habit.connections
        if self._is_silent:
            self._habit.tried_at = self._before

    def _by_waiting_s(self, now: float) -> float:
        waited_s = now - self._since
        if not self._waiting or waited_s <= self._habit.patience_s:
            return 0.0
        others_are_answered = self._habit.answers - self._answers_before >= _ENOUGH * self._endpoints
        return waited_s if others_are_answered or self._habit.are_too_many(len(self._waiting)) else 0.0

    def _answered(self, waiting: Waiting) -> None:
        """The endpoint speaks."""
        del self._waiting[waiting]
        self._earlier.update(self._waiting)
        self._waiting.clear()
        self._left_behind = None
        waiting.teach()

    def _look_at_earlier(self, waiting: Waiting) -> None:
        """When that one was answered is not known: it may be long ago."""
        if waiting.is_answered:
            del self._earlier[waiting]
            waiting.teach()
        else:
            self._earlier.move_to_end(waiting)
