"""Nobody's turn is taken by somebody who asks for more, and nothing that waits is lost."""

from hypothesis import given
from hypothesis import strategies as st

from ca.authority.fair_queue import FairQueue

PEERS = st.integers(0, 5)
COSTS = st.integers(1, 500)


@given(st.lists(st.tuples(PEERS, COSTS) | st.integers(1, 600), max_size=60))
def test_what_was_let_in_comes_out_once_and_in_each_peers_order(steps: list[tuple[int, int] | int]) -> None:
    queue: FairQueue[tuple[int, int]] = FairQueue(max_cost=2000, max_cost_a_peer=1000)
    let_in: list[tuple[int, int]] = []
    came_out: list[tuple[int, int]] = []
    costs: dict[tuple[int, int], int] = {}

    for number, step in enumerate(steps):
        if isinstance(step, int):
            taken = queue.take(most=step)
            assert taken or not len(queue)
            assert len(taken) == 1 or sum(costs[each] for each in taken) <= step
            came_out += taken
        else:
            peer, cost = step
            costs[peer, number] = cost
            if queue.offer((peer, number), peer=peer, cost=cost):
                let_in.append((peer, number))
        assert queue.cost == sum(costs[each] for each in set(let_in) - set(came_out))
        assert queue.cost <= 4000
    while len(queue):
        came_out += queue.take(most=1)

    assert queue.take(most=1) == []
    assert queue.cost == 0
    for peer in range(6):
        assert [each for each in came_out if each[0] == peer] == [each for each in let_in if each[0] == peer]


@given(greedy=st.lists(COSTS, min_size=5, max_size=40), modest=st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_a_greedy_peer_delays_another_by_its_own_turn_at_most(greedy: list[int], modest: list[int]) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue(max_cost=10**6, max_cost_a_peer=10**6)
    for cost in greedy:
        queue.offer(("greedy", cost), peer="greedy", cost=cost)
    for cost in modest:
        queue.offer(("modest", cost), peer="modest", cost=cost)

    served: list[tuple[str, int]] = []
    while [each for each in served if each[0] == "modest"] != [("modest", cost) for cost in modest]:
        served += queue.take(most=1)

    spent = sum(cost for peer, cost in served if peer == "greedy")
    # As much as the other, one turn, and the largest item that it may have saved for.
    assert spent <= sum(modest) + 50 * (len(modest) + 1) + max(greedy)


def test_one_peer_can_not_fill_the_room_of_the_others() -> None:
    queue: FairQueue[int] = FairQueue(max_cost=100, max_cost_a_peer=40)
    assert [queue.offer(1, peer="greedy", cost=10) for _ in range(6)] == [True] * 4 + [False] * 2
    assert queue.offer(2, peer="modest", cost=10)


@given(others=st.integers(2, 6), cost=st.integers(1, 100))
def test_greedy_peers_together_do_not_keep_out_who_asks_for_its_share(others: int, cost: int) -> None:
    queue: FairQueue[int] = FairQueue(max_cost=1000, max_cost_a_peer=500)
    for _ in range(50):
        for peer in range(others):
            queue.offer(peer, peer=peer, cost=100)
    assert queue.cost >= 900
    assert queue.offer(99, peer="modest", cost=cost)


@given(st.lists(st.tuples(PEERS, COSTS), min_size=1, max_size=40))
def test_nobody_waits_for_much_more_than_was_told(offers: list[tuple[int, int]]) -> None:
    queue: FairQueue[int] = FairQueue(max_cost=10**6, max_cost_a_peer=10**6)
    for peer, cost in offers[:-1]:
        queue.offer(0, peer=peer, cost=cost)
    peer, cost = offers[-1]
    told = queue.ahead(peer, cost=cost)
    before = queue.cost
    queue.offer(1, peer=peer, cost=cost)
    while queue.take(most=1) != [1]:
        pass
    saved_for = [max([each for one, each in offers if one == other], default=0) for other in range(6)]
    assert before + cost - queue.cost <= told + sum(saved_for)


def test_a_request_larger_than_the_room_is_served_when_nobody_else_waits() -> None:
    queue: FairQueue[int] = FairQueue(max_cost=10, max_cost_a_peer=10)
    assert queue.offer(1, peer="a", cost=500)
    assert not queue.offer(2, peer="b", cost=1)
    assert queue.take(most=1) == [1]
