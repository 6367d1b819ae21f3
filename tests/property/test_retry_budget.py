"""Retries never make an outage worse: the budget against what it promises."""

from hypothesis import given
from hypothesis import strategies as st

from ca.manifests.traffic import Retry
from node_agent.balance.budget import RetryBudget


@given(
    percent=st.integers(0, 100),
    min_per_s=st.floats(0, 50),
    steps=st.lists(st.tuples(st.floats(0, 3), st.booleans()), max_size=300),
)
def test_never_more_than_the_share_of_the_connects_and_the_few_a_second(
    percent: int, min_per_s: float, steps: list[tuple[float, bool]]
) -> None:
    config = Retry(budget_percent=percent, min_per_s=min_per_s)
    now = 100.0
    budget = RetryBudget(config, now)
    connects = retries = 0
    for wait_s, is_connect in steps:
        now += wait_s
        if is_connect:
            budget.connect(config, now)
            connects += 1
        else:
            retries += budget.take(config, now)
        allowed = connects * percent / 100 + (now - 100.0 + 1.0) * min_per_s
        assert retries <= allowed + 1e-6


@given(st.integers(1, 500))
def test_when_everything_fails_the_share_can_be_used(connects: int) -> None:
    config = Retry(budget_percent=20, min_per_s=0.0)
    budget = RetryBudget(config, 0.0)
    retries = 0
    for _ in range(connects):
        budget.connect(config, 0.0)
        retries += budget.take(config, 0.0)
    assert retries == (connects * 20 + 1) // 100 or abs(retries - connects * 0.2) <= 1


def test_a_quiet_service_can_retry_too() -> None:
    config = Retry()
    budget = RetryBudget(config, 0.0)
    assert [budget.take(config, 0.0) for _ in range(4)] == [True, True, True, False]
    assert budget.take(config, 0.4)
    assert not budget.take(config, 0.4)
