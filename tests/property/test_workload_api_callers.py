"""What callers may cost: a budget that never gives more than its rate, and connections counted exactly."""

from hypothesis import given
from hypothesis import strategies as st

from node_agent.workload_api.budget import Budget
from node_agent.workload_api.callers import (
    MAX_CONNECTIONS,
    MAX_CONNECTIONS_A_WORKLOAD,
    MAX_UNKNOWN_CONNECTIONS,
    UNKNOWN,
    Callers,
    Group,
)


@given(
    steps=st.lists(st.tuples(st.floats(0, 5), st.floats(0, 100)), max_size=60),
    rate=st.floats(1, 100),
    burst=st.floats(1, 100),
)
def test_who_waits_as_he_is_told_never_gets_more_than_burst_and_rate(
    steps: list[tuple[float, float]], rate: float, burst: float
) -> None:
    now = spent = 0.0
    budget = Budget(now=now, rate=rate, burst=burst)
    for idle_s, wished in steps:
        now += idle_s
        cost = min(wished, rate)  # one turn costs a second's worth at most: no debt is forgiven
        now += budget.spend(cost, now=now)
        spent += cost
        assert spent <= burst + rate * now + 1e-6


@given(costs=st.lists(st.floats(0, 1e6), min_size=1, max_size=20))
def test_a_debt_is_never_longer_than_two_seconds(costs: list[float]) -> None:
    budget = Budget(now=0.0)
    assert all(budget.spend(cost, now=0.0) <= 2.0 for cost in costs)


def test_what_can_not_be_paid_is_not_taken() -> None:
    budget = Budget(now=0.0, rate=1.0, burst=2.0)
    assert [budget.try_spend(1.0, now=0.0) for _ in range(3)] == [True, True, False]
    assert not budget.is_full(now=1.9)
    assert budget.try_spend(1.0, now=1.0)
    assert budget.is_full(now=3.0)


@given(moves=st.lists(st.tuples(st.sampled_from(["", "a", "b", "c"]), st.booleans()), max_size=200))
def test_connections_are_counted_exactly_and_nobody_takes_anothers(moves: list[tuple[str, bool]]) -> None:
    callers, held, turned_away = Callers(), dict[str, list[Group]](), 0
    for key, comes in moves:
        mine = held.setdefault(key, [])
        most = MAX_UNKNOWN_CONNECTIONS if key == UNKNOWN else MAX_CONNECTIONS_A_WORKLOAD
        if comes:
            group = callers.enter(key, now=0.0)
            assert (group is None) == (len(mine) == most)
            if group is None:
                turned_away += 1
            else:
                assert group.key == key
                mine.append(group)
        elif mine:
            callers.leave(mine.pop())
        assert callers.connections == sum(len(each) for each in held.values())
    assert callers.turned_away == turned_away


def test_all_together_are_bounded_and_groups_that_have_gone_are_forgotten() -> None:
    callers = Callers()
    groups = [callers.enter(f"pod-{number // 32}", now=0.0) for number in range(MAX_CONNECTIONS)]
    assert None not in groups
    assert callers.enter("one-more", now=0.0) is None
    for group in groups:
        assert group is not None
        callers.leave(group)
    for number in range(5000):
        group = callers.enter(f"later-{number}", now=100.0 + number)
        assert group is not None
        callers.leave(group)
    assert len(callers._groups) <= 1025
