"""Rotation as a state machine: whatever happens in whatever order, an SVID is used while valid and renewed in time."""

from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from node_agent.identity.rotation import LONGEST_PAUSE_S, LONGEST_PAUSE_WANTED_S, Expired, Renew, Rotation, WaitFor

_START = datetime(2026, 1, 1, tzinfo=UTC)
_DRAW = st.floats(0, 1, exclude_max=True)


class RotationMachine(RuleBasedStateMachine):
    """Plays the edge and the CA; the oracle is what a certificate's dates say."""

    def __init__(self) -> None:
        super().__init__()
        self.rotation = Rotation()
        self.elapsed_s = 0.0
        self.not_after: datetime | None = None
        self.issued_at = _START
        self.failed_at: float | None = None
        self.wish_s = 0.0

    @property
    def at(self) -> datetime:
        return _START + timedelta(seconds=self.elapsed_s)

    def step(self, *, wanted: bool = False) -> Renew | WaitFor | Expired:
        return self.rotation.next_step(at=self.at, now=self.elapsed_s, wanted=wanted)

    @rule(seconds=st.floats(0, 4000))
    def time_passes(self, seconds: float) -> None:
        self.elapsed_s += seconds

    @rule(wanted=st.booleans())
    def wait_as_told(self, wanted: bool) -> None:
        step = self.step(wanted=wanted)
        if isinstance(step, WaitFor):
            self.elapsed_s += step.seconds + 0.001
            assert step.seconds <= 60.0

    @precondition(lambda self: isinstance(self.step(), Expired))
    @rule()
    def drop(self) -> None:
        assert self.not_after is not None
        assert self.at >= self.not_after
        self.rotation.dropped()
        self.not_after = None

    @precondition(lambda self: isinstance(self.step(), Renew))
    @rule(ttl_s=st.floats(60, 7200), draw=_DRAW)
    def ca_issues(self, ttl_s: float, draw: float) -> None:
        self.issued_at = self.at
        self.not_after = self.at + timedelta(seconds=ttl_s)
        self.rotation.issued(at=self.at, not_after=self.not_after, draw=draw)
        self.failed_at = None
        self.wish_s = 0.0

    @precondition(lambda self: isinstance(self.step(), Renew))
    @rule(draw=_DRAW, wish_s=st.sampled_from([0.0, 0.0, 1.0, 1e6]))
    def ca_fails(self, draw: float, wish_s: float) -> None:
        self.rotation.failed(now=self.elapsed_s, draw=draw, wish_s=wish_s)
        self.failed_at = self.elapsed_s
        self.wish_s = min(wish_s, LONGEST_PAUSE_S)

    @invariant()
    def valid_is_what_the_dates_say(self) -> None:
        assert self.rotation.valid(self.at) is (self.not_after is not None and self.at < self.not_after)

    @invariant()
    def an_expired_certificate_is_never_kept(self) -> None:
        expired = self.not_after is not None and self.at >= self.not_after
        assert isinstance(self.step(), Expired) is expired

    @invariant()
    def the_predicate_is_repeatable(self) -> None:
        assert self.step() == self.step()

    @invariant()
    def no_renewal_before_45_percent_of_the_life_and_one_due_after_55(self) -> None:
        if self.not_after is None or self.at >= self.not_after:
            return
        life = self.not_after - self.issued_at
        if self.at < self.issued_at + 0.449 * life:
            assert isinstance(self.step(), WaitFor)
        if self.at > self.issued_at + 0.551 * life and self.failed_at is None:
            assert isinstance(self.step(), Renew)

    @invariant()
    def a_failure_never_stops_the_attempts(self) -> None:
        if self.failed_at is None or isinstance(self.step(), Expired):
            return
        waited_s = self.elapsed_s - self.failed_at
        if waited_s > LONGEST_PAUSE_S:
            assert isinstance(self.step(), Renew)
        if waited_s > max(LONGEST_PAUSE_WANTED_S, self.wish_s):
            assert isinstance(self.step(wanted=True), Renew)
        if waited_s < max(0.2, self.wish_s) - 0.001:
            assert isinstance(self.step(wanted=True), WaitFor)

    @invariant()
    def a_wait_ends_no_later_than_the_certificate(self) -> None:
        step = self.step()
        if isinstance(step, WaitFor) and self.not_after is not None:
            assert step.seconds <= (self.not_after - self.at).total_seconds()


TestRotation = RotationMachine.TestCase
