"""Token buckets against an oracle that does it the long way, and a table that never grows."""

from hypothesis import given
from hypothesis import strategies as st

from ca.authority.limits import Buckets

STEPS = st.lists(
    st.tuples(st.integers(0, 3), st.floats(0.0, 40.0, allow_nan=False), st.integers(1, 60)), min_size=1, max_size=60
)


class _Oracle:
    """A bucket as it is usually told: so many tokens, refilled as time goes by."""

    def __init__(self, *, a_second: float, burst: float) -> None:
        self._a_second, self._burst = a_second, burst
        self._tokens, self._at = burst, 0.0

    def take(self, cost: float, now: float) -> bool:
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._a_second)
        self._at = now
        cost = min(cost, self._burst)
        if cost > self._tokens + 1e-6:
            return False
        self._tokens -= cost
        return True


@given(steps=STEPS, a_minute=st.sampled_from([60.0, 120.0, 6000.0]))
def test_it_lets_through_what_a_bucket_would(steps: list[tuple[int, float, int]], a_minute: float) -> None:
    buckets = Buckets(a_minute=a_minute)
    oracles = [_Oracle(a_second=a_minute / 60, burst=a_minute / 4) for _ in range(4)]
    now = 1000.0
    for peer, pause_s, cost in steps:
        now += pause_s
        wait_s = buckets.take(peer, cost=cost, now=now)
        assert (wait_s < 1e-6) == oracles[peer].take(cost, now)


@given(steps=STEPS)
def test_who_waits_as_long_as_he_is_told_is_let_through(steps: list[tuple[int, float, int]]) -> None:
    buckets, now = Buckets(a_minute=60), 0.0
    for peer, pause_s, cost in steps:
        now += pause_s
        if wait_s := buckets.take(peer, cost=cost, now=now):
            now += wait_s + 1e-6
            assert buckets.take(peer, cost=cost, now=now) == 0.0


@given(st.lists(st.tuples(st.integers(0, 200), st.floats(0.0, 2.0)), max_size=300))
def test_the_table_is_bounded_and_what_it_forgets_gains_no_more_than_a_full_bucket(
    steps: list[tuple[int, float]],
) -> None:
    buckets, now, taken = Buckets(a_minute=60, most_peers=20), 0.0, 0
    for peer, pause_s in steps:
        now += pause_s
        taken += buckets.take(peer, now=now) == 0.0
        assert len(buckets) <= 20
    assert taken <= len(steps)


def test_a_flood_of_addresses_does_not_free_who_asks_all_the_time() -> None:
    buckets, refused = Buckets(a_minute=60, most_peers=100), 0
    for number in range(10_000):
        buckets.take(f"flood-{number}", now=0.0)
        if number % 50 == 0:
            refused += buckets.take("greedy", now=0.0) > 0.0
    assert refused == 200 - 15


def test_a_debt_is_paid_by_waiting() -> None:
    buckets = Buckets(a_minute=60)
    buckets.charge("peer", cost=30.0, now=0.0)
    assert buckets.take("peer", now=0.0) == 16.0
    assert buckets.take("peer", now=16.0) == 0.0


def test_what_is_given_back_can_be_taken_again_but_no_more_than_that() -> None:
    buckets = Buckets(a_minute=60)
    assert buckets.take("peer", cost=15.0, now=0.0) == 0.0
    buckets.charge("peer", cost=-100.0, now=0.0)
    assert len(buckets) == 0
    assert [buckets.take("peer", cost=5.0, now=0.0) for _ in range(4)] == [0.0, 0.0, 0.0, 5.0]
