"""Notice an endpoint that accepts connections and then says nothing: its program hangs.

Sans-I/O: callers pass ``now`` (monotonic seconds).  A kernel accepts for a
program that is stopped, so the connect looks as good as ever.  What tells is
that the connections sent there wait for their first byte while others, to the
same service, get theirs.

Nobody knows how long a program may be silent, so nothing is measured against a
fixed time.  An endpoint is silent if

* one of its connections waits for its first byte, and none of them got one
  meanwhile;
* longer than is usual for the service: several times its mean and spread, as
  TCP's retransmission timer is made (RFC 6298);
* chance does not explain it: the service has answered eight connections for
  each of its endpoints since then, or so many wait that eight of them would have
  been answered by the service's habit.  Chance does that once in three thousand
  times (e^-8).  The latter counts where one endpoint has had everything, because
  it was the nearest.

Where all are silent for long there are no answers, and so no difference.  An
answer ends it at once.  A connection that its client gave up leaves the time it
waited behind, which is forgotten like the latency of a connect that timed out.
One that is wrongly called silent (all that it has are connections whose clients
do not ask for anything) gets another one by its merits when the service has had
so many others meanwhile that its clients would hardly feel a mistake.

A connection is looked at when its endpoint is about to be chosen, and when it
ends: one that moves bytes pays nothing for it.
"""

from collections import OrderedDict
from typing import Final, Protocol

from node_agent.balance.latency import PeakEwma

_ENOUGH: Final = 8
_REMEMBERED: Final = 4096  # connections
_LEAST_PATIENCE_S: Final = 0.25  # below it a busy machine is no different from a program that hangs
_TIMES_USUAL: Final = 3.0
_MEAN_NEWS: Final = 1 / 8  # RFC 6298 section 2: alpha, beta, K
_SPREAD_NEWS: Final = 1 / 4
_SPREADS: Final = 4.0
_TRY_AGAIN_AFTER: Final = 256  # connections to the service: one in so many may be lost to finding out


class Answer(Protocol):
    """A connection, as far as its endpoint's bytes go."""

    @property
    def down_bytes(self) -> int: ...


class Habit:
    """How long the first byte of a service usually takes, and how many connections get one."""

    __slots__ = ("_mean_s", "_recent", "_recently_answered", "_spread_s", "answers", "connections")

    def __init__(self) -> None:
        self._mean_s: float | None = None
        self._spread_s = 0.0
        self._recent = 0
        self._recently_answered = 0
        self.answers = 0
        self.connections = 0

    def began(self) -> None:
        """A connection is up."""
        self.connections += 1
        self._recent += 1
        if self._recent >= _REMEMBERED:
            self._recent //= 2
            self._recently_answered //= 2

    def would_have_answered(self, waiting: int) -> bool:
        """Whether so many connections that wait are too many, going by the others."""
        others = max(self._recent - waiting, self._recently_answered) + 1
        return self._recently_answered > 0 and waiting * self._recently_answered >= _ENOUGH * others

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
    """One connection whose first byte nobody has seen yet.

    It counts as waiting from when it was first looked at, because only then it
    was seen to wait; and from the last answer of its endpoint on.
    """

    __slots__ = ("_answer", "_answers_before", "_began_at", "_seen_at", "_since", "habit")

    def __init__(self, answer: Answer, habit: Habit, now: float) -> None:
        self.habit = habit
        self._answer = answer
        self._began_at = self._seen_at = self._since = now
        self._answers_before = habit.answers

    @property
    def is_answered(self) -> bool:
        return self._answer.down_bytes > 0

    def look(self, spoken_at: float, now: float) -> None:
        """It is not answered yet; ``spoken_at`` is when its endpoint last answered one."""
        self._seen_at = now
        if spoken_at > self._since:
            self._since = now
            self._answers_before = self.habit.answers

    def silent_s(self, *, waiting: int, endpoints: int, now: float) -> float:
        """For how long its endpoint is silent, by it, of so many that ``waiting``; 0 if it is not."""
        habit, waited_s = self.habit, now - self._since
        if waited_s <= habit.patience_s:
            return 0.0
        others_are_answered = habit.answers - self._answers_before >= _ENOUGH * endpoints
        return waited_s if others_are_answered or habit.would_have_answered(waiting) else 0.0

    def ended(self) -> None:
        """It is answered: teach the service's habit."""
        self.habit.answered(self._seen_at - self._began_at)


class Silence:
    """The connections of one endpoint that wait for their first byte, the oldest first."""

    __slots__ = ("_before", "_endpoints", "_habit", "_left_behind", "_spoken_at", "_waiting")

    def __init__(self, habit: Habit) -> None:
        self._waiting: OrderedDict[Waiting, None] = OrderedDict()
        self._habit = habit
        self._endpoints = 1
        self._before = 0
        self._spoken_at = 0.0
        self._left_behind: PeakEwma | None = None

    def begin(self, waiting: Waiting, *, endpoints: int) -> None:
        """A connection is up; ``endpoints`` have it to share."""
        self._waiting[waiting] = None
        self._endpoints = endpoints
        self._habit = waiting.habit
        self._before = waiting.habit.connections

    def end(self, waiting: Waiting, now: float) -> None:
        """It is over; harmless if that was known."""
        if waiting not in self._waiting:
            return
        if waiting.is_answered:
            self._answered(waiting, now)
            return
        waiting.look(self._spoken_at, now)
        silent_s = waiting.silent_s(waiting=len(self._waiting), endpoints=self._endpoints, now=now)
        del self._waiting[waiting]
        if silent_s:
            if self._left_behind is None:
                self._left_behind = PeakEwma(0.0, now)
            self._left_behind.observe(silent_s, now)

    def silent_s(self, now: float) -> float:
        """For how long the endpoint has been silent, 0 if it is not."""
        if not self._waiting and self._left_behind is None:
            return 0.0
        oldest = self._oldest(now)
        silent_s = 0.0 if self._left_behind is None else self._left_behind.at(now)
        if oldest is not None:
            by_it_s = oldest.silent_s(waiting=len(self._waiting), endpoints=self._endpoints, now=now)
            silent_s = max(silent_s, by_it_s)
        return silent_s

    def costs_s(self, now: float) -> float:
        """The same, as far as it is to keep connections away."""
        silent_s = self.silent_s(now)
        return 0.0 if self._habit.connections - self._before >= _TRY_AGAIN_AFTER else silent_s

    def _oldest(self, now: float) -> Waiting | None:
        while self._waiting:
            oldest = next(iter(self._waiting))
            if not oldest.is_answered:
                oldest.look(self._spoken_at, now)
                return oldest
            self._answered(oldest, now)
        return None

    def _answered(self, waiting: Waiting, now: float) -> None:
        del self._waiting[waiting]
        self._spoken_at = now
        self._left_behind = None
        waiting.ended()
