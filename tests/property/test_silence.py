"""Silence against an oracle: whatever comes in whatever order, only what does not answer while others do is silent."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, MultipleResults, RuleBasedStateMachine, consumes, invariant, multiple, rule

from node_agent.balance.silence import Habit, Silence, Waiting

_PATIENCE_S = 0.25
_ENDPOINTS = 3


class _Connection:
    def __init__(self, now: float) -> None:
        self.began = now
        self.down_bytes = 0


class SilenceMachine(RuleBasedStateMachine):
    """One endpoint of three, and the others' answers as a number."""

    ours = Bundle("ours")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.habit = Habit()
        self.silence = Silence(self.habit)
        self.fresh: list[_Connection] = []  # begun since the last answer, in order, and not over
        self.had_any_answer = False
        self.gave_up_silent = False
        self.others_since = 0  # answers of others since the first of the fresh ones

    @rule(seconds=st.floats(0.001, 2.0))
    def time_goes_by(self, seconds: float) -> None:
        self.now += seconds

    @rule(target=ours)
    def connect(self) -> tuple[_Connection, Waiting]:
        connection = _Connection(self.now)
        if not self.fresh:
            self.others_since = 0
        self.fresh.append(connection)
        self.habit.began()
        self.silence.picked()
        waiting = Waiting(connection, self.habit, self.now)
        self.silence.begin(waiting, endpoints=_ENDPOINTS, now=self.now)
        return connection, waiting

    @rule(which=consumes(ours))
    def answer_and_end(self, which: tuple[_Connection, Waiting]) -> None:
        connection, waiting = which
        connection.down_bytes = 1
        self.silence.end(waiting, self.now)
        self.had_any_answer = True
        if connection in self.fresh:
            self.fresh.clear()
            self.gave_up_silent = False

    @rule(target=ours, which=consumes(ours))
    def give_up(self, which: tuple[_Connection, Waiting]) -> MultipleResults[tuple[_Connection, Waiting]]:
        connection, waiting = which
        if connection in self.fresh:
            self.gave_up_silent |= self.silence.silent_s(self.now) > 0
            self.fresh.remove(connection)
        self.silence.end(waiting, self.now)
        self.silence.end(waiting, self.now)
        return multiple()

    @rule(count=st.integers(1, 30))
    def others_answer(self, count: int) -> None:
        for _ in range(count):
            self.habit.began()
            self.habit.answered(0.01)
        self.had_any_answer = True
        self.others_since += count

    @invariant()
    def is_silent_only_for_a_reason(self) -> None:
        silent_s = self.silence.silent_s(self.now)
        if silent_s and not self.gave_up_silent:
            assert self.had_any_answer, "where nobody answers nobody is silent"
            assert self.fresh, "only what waits"
            assert silent_s > _PATIENCE_S

    @invariant()
    def is_silent_for_good_reasons(self) -> None:
        if self.fresh and self.others_since >= 8 * _ENDPOINTS:
            oldest_s = self.now - self.fresh[0].began
            assert (self.silence.silent_s(self.now) > 0) or oldest_s <= self.habit.patience_s


TestSilence = SilenceMachine.TestCase
TestSilence.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
