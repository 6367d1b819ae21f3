"""When checks are due, and what their results mean, against a history that is read anew each time."""

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ca.manifests.traffic import HealthCheck
from node_agent.balance.health import HealthChecks, Target
from node_agent.model import EndpointAddress

_MOST = 3
_CHECKS = (
    HealthCheck(interval_s=1.0, timeout_s=0.5, unhealthy_threshold=2, healthy_threshold=1),
    HealthCheck(tls=True, interval_s=0.25, timeout_s=0.25, unhealthy_threshold=1, healthy_threshold=3),
)
_TARGETS = tuple(
    Target(EndpointAddress(f"10.1.0.{number}", 8080), uid, check)
    for number in range(3)
    for uid in ("", "pod")
    for check in _CHECKS
)


def _is_unhealthy(history: list[str], check: HealthCheck) -> bool:
    """The definition: as many failures in a row, and not as many successes in a row since."""
    unhealthy = False
    for end in range(1, len(history) + 1):
        need = check.healthy_threshold if unhealthy else check.unhealthy_threshold
        last = history[max(0, end - need) : end]
        if len(last) == need and all(bool(each) is not unhealthy for each in last):
            unhealthy = not unhealthy
    return unhealthy


class Checking(RuleBasedStateMachine):
    """Endpoints come and go, checks take their time, and the clock moves."""

    @initialize(drawn=st.floats(0, 1, exclude_max=True))
    def begin(self, drawn: float) -> None:
        self.now = 1000.0
        self.drawn = drawn
        self.checks = HealthChecks(lambda: self.drawn)
        self.histories: dict[Target, list[str]] = {}
        self.phases: dict[Target, float] = {}
        self.last_due: dict[Target, float] = {}
        self.running: set[Target] = set()

    def _held(self, target: Target) -> bool:
        return any(
            _is_unhealthy(history, other.check) for other, history in self.histories.items() if other[:2] == target[:2]
        )

    @rule(wanted=st.sets(st.sampled_from(_TARGETS)), drawn=st.floats(0, 1, exclude_max=True))
    def watch(self, wanted: set[Target], drawn: float) -> None:
        self.drawn = drawn
        gone = self.histories.keys() - wanted
        before = {target for target in gone if _is_unhealthy(self.histories[target], target.check)}
        for target in gone:
            del self.histories[target], self.phases[target]
            self.last_due.pop(target, None)
        lifted = self.checks.watch(wanted, self.now)
        endpoints = [target[:2] for target in lifted]
        assert len(endpoints) == len(set(endpoints)), "told once"
        assert set(endpoints) == {target[:2] for target in before if not self._held(target)}
        for target in wanted - self.histories.keys():
            self.histories[target] = []
            self.phases[target] = self.now + drawn * target.check.interval_s
        assert len(self.checks) == len(wanted)

    @rule(seconds=st.sampled_from([0.0, 0.05, 0.25, 1.0, 7.3]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(most=st.integers(0, _MOST))
    def check_what_is_due(self, most: int) -> None:
        due = self.checks.due(self.now, most)
        assert len(due) <= most
        assert len(due) == len(set(due))
        for target in due:
            assert target in self.histories, "nothing that was dropped"
            assert target not in self.running, "never two at a time"
            assert self.now >= self.phases[target], "not before its moment within the first interval"
            before = self.last_due.get(target, -math.inf)
            at = (
                self.phases[target]
                + math.floor((self.now - self.phases[target]) / target.check.interval_s + 1e-9)
                * target.check.interval_s
            )
            assert at > before - 1e-6, "once an interval"
            self.last_due[target] = self.now
            self.running.add(target)
        if len(due) < most:
            assert self.checks.next_at() > self.now

    @precondition(lambda self: self.running)
    @rule(data=st.data(), failure=st.sampled_from(["", "", "health check: connect_refused", None]))
    def end(self, data: st.DataObject, failure: str | None) -> None:
        target = data.draw(st.sampled_from([each for each in _TARGETS if each in self.running]))
        self.running.discard(target)
        before = self._held(target)
        if target in self.histories and failure is not None:
            self.histories[target].append(failure)
        changed = self.checks.ended(target, failure, self.now)
        assert changed is (self._held(target) is not before)

    @invariant()
    def health_is_what_the_history_says(self) -> None:
        if hasattr(self, "checks"):
            for target in self.histories:
                assert bool(self.checks.why(target)) is self._held(target)

    @invariant()
    def nothing_that_could_be_checked_is_forgotten(self) -> None:
        if hasattr(self, "checks"):
            idle = [target for target in self.histories if target not in self.running]
            at = self.checks.next_at()
            assert (at == math.inf) is (not idle)
            if idle:
                assert at <= self.now + max(target.check.interval_s for target in idle)


TestChecking = Checking.TestCase


@given(st.lists(st.integers(0, 63).map(lambda number: number / 64), min_size=2, max_size=50))
def test_checks_of_many_endpoints_are_spread_over_the_interval_and_keep_their_distance(draws: list[float]) -> None:
    check = HealthCheck(interval_s=8.0)
    targets = [Target(EndpointAddress(f"10.1.0.{number}", 80), "", check) for number in range(len(draws))]
    left = list(draws)
    checks = HealthChecks(lambda: left.pop(0))
    checks.watch(targets, 0.0)
    moments: dict[Target, list[float]] = {target: [] for target in targets}
    while (at := checks.next_at()) < 80.0:
        for target in checks.due(at, len(targets)):
            moments[target].append(at)
            checks.ended(target, "", at)
    assert sorted(each[0] for each in moments.values()) == sorted(draw * 8.0 for draw in draws)
    for each in moments.values():
        assert len(each) == 10
        assert all(later - earlier == 8.0 for earlier, later in itertools.pairwise(each))


def test_a_long_pause_of_the_agent_is_followed_by_one_check_and_not_by_all_that_were_missed() -> None:
    check = HealthCheck(interval_s=1.0)
    target = Target(EndpointAddress("10.1.0.1", 80), "", check)
    checks = HealthChecks(lambda: 0.5)
    checks.watch([target], 0.0)
    assert checks.due(100.0, 9) == [target]
    checks.ended(target, "", 100.0)
    assert checks.due(100.0, 9) == []
    assert checks.next_at() == 100.5
