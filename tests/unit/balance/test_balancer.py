"""Which endpoint is picked, and what is remembered of it."""

from collections import Counter
from random import Random

import pytest

from ca.spiffe import SpiffeId
from node_agent.balance import Balancer, EndpointLoad, NoEndpoints
from node_agent.errors import CloseReason
from node_agent.model import Endpoint, EndpointAddress, EndpointKey, ObjectName, ServicePort, Workload

FAIR = ServicePort(service=ObjectName("shop", "web"), port=80, load_balancing="round-robin")
QUICK = ServicePort(service=ObjectName("shop", "web"), port=81)


def endpoints(count: int, *, not_ready: tuple[int, ...] = ()) -> tuple[Endpoint, ...]:
    return tuple(
        Endpoint(address=EndpointAddress(f"10.1.0.{n}", 8080), workload=None, ready=n not in not_ready)
        for n in range(1, count + 1)
    )


def test_round_robin_is_even_and_passes_over_what_is_not_ready() -> None:
    balancer = Balancer(rng=Random(1))
    candidates = endpoints(4, not_ready=(2,))
    counts = Counter(balancer.pick(FAIR, candidates, 0.0).endpoint.address.ip for _ in range(30))
    assert counts == {"10.1.0.1": 10, "10.1.0.3": 10, "10.1.0.4": 10}


def test_round_robin_goes_on_where_it_was_when_the_endpoints_change() -> None:
    balancer = Balancer(rng=Random(1))
    picked = [balancer.pick(FAIR, endpoints(3), 0.0).endpoint.address.ip for _ in range(6)]
    assert Counter(picked) == {"10.1.0.1": 2, "10.1.0.2": 2, "10.1.0.3": 2}


def test_the_slower_of_two_is_not_picked_until_its_peak_has_decayed() -> None:
    balancer = Balancer(rng=Random(1))
    slow, quick = candidates = endpoints(2)
    balancer.pick(QUICK, (slow,), 0.0).connected(0.5)
    balancer.pick(QUICK, (quick,), 0.0).connected(0.001)
    for each in range(20):
        pick = balancer.pick(QUICK, candidates, 1.0)
        assert pick.endpoint is quick, each
        pick.release(1.0)


def test_open_connections_weigh_against_a_quick_endpoint() -> None:
    balancer = Balancer(rng=Random(1))
    candidates = endpoints(2)
    for one in candidates:
        pick = balancer.pick(QUICK, (one,), 0.0)
        pick.connected(0.001)
        pick.release(0.001)
    counts = Counter(balancer.pick(QUICK, candidates, 0.001).endpoint.address.ip for _ in range(40))
    assert counts == {"10.1.0.1": 20, "10.1.0.2": 20}


def test_the_near_one_of_three_is_taken_though_two_that_are_drawn_may_both_be_far() -> None:
    balancer = Balancer(rng=Random(1))
    near, *far = candidates = endpoints(3)
    for one, latency_s in ((near, 0.001), (far[0], 0.05), (far[1], 0.06)):
        pick = balancer.pick(QUICK, (one,), 0.0)
        pick.connected(latency_s)
        pick.release(latency_s)
    counts: Counter[Endpoint] = Counter()
    for _ in range(300):
        pick = balancer.pick(QUICK, candidates, 0.1)
        counts[pick.endpoint] += 1
        pick.release(0.1)
    assert counts[near] > 280, "of two at random it would be among them in two of three cases"


def test_what_all_cost_is_not_far_off() -> None:
    balancer = Balancer(rng=Random(1))
    candidates = endpoints(3)
    for one in candidates:
        pick = balancer.pick(QUICK, (one,), 0.0)
        pick.connected(0.05)
        pick.release(0.05)
    counts = Counter(balancer.pick(QUICK, candidates, 0.05).endpoint for _ in range(300))
    assert all(95 <= count <= 105 for count in counts.values())


def test_an_endpoint_that_does_not_answer_is_left_before_its_first_connect_has_timed_out() -> None:
    balancer = Balancer(rng=Random(1))
    gone, here = candidates = endpoints(2)
    for one in candidates:
        pick = balancer.pick(QUICK, (one,), 0.0)
        pick.connected(0.001)
        pick.release(0.001)
    silent = balancer.pick(QUICK, (gone,), 1.0)
    held = [balancer.pick(QUICK, candidates, 1.5) for _ in range(20)]
    assert {each.endpoint for each in held} == {here}
    silent.connected(1.6)
    assert balancer.load_of(gone, 1.6).latency_s == pytest.approx(0.6)


def test_a_new_endpoint_is_neither_starved_nor_flooded() -> None:
    balancer = Balancer(rng=Random(1))
    old, new = candidates = endpoints(2)
    for _ in range(10):
        balancer.pick(QUICK, (old,), 0.0).connected(0.001)
    counts = Counter(balancer.pick(QUICK, candidates, 0.001).endpoint for _ in range(30))
    assert counts == {old: 10, new: 20}


def test_an_endpoint_that_refuses_does_not_look_quick() -> None:
    balancer = Balancer(rng=Random(1))
    refusing, slow = candidates = endpoints(2)
    balancer.pick(QUICK, (refusing,), 0.0).failed(0.0001)
    balancer.pick(QUICK, (slow,), 0.0).connected(0.1)
    assert balancer.pick(QUICK, candidates, 0.2).endpoint is slow


def test_an_endpoint_that_refused_beside_a_quick_one_is_back_within_seconds() -> None:
    balancer = Balancer(rng=Random(1))
    restarted, _ = candidates = endpoints(2)
    balancer.pick(QUICK, (restarted,), 0.0).failed(0.001)
    for step in range(100):
        pick = balancer.pick(QUICK, candidates, step * 0.1)
        if pick.endpoint is restarted:
            break
        pick.connected(step * 0.1 + 0.002)
        pick.release(step * 0.1 + 0.002)
    assert 4 < step * 0.1 < 8


def test_an_endpoint_that_is_ready_again_gets_its_share_at_once() -> None:
    balancer = Balancer(rng=Random(1))
    for one in endpoints(2):
        pick = balancer.pick(QUICK, (one,), 0.0)
        pick.connected(0.001)
        pick.release(0.001)
    balancer.pick(QUICK, endpoints(2), 0.0, exclude={endpoints(2)[1].key}).failed(0.1)
    balancer.pick(QUICK, endpoints(2, not_ready=(1,)), 0.2).release(0.2)

    ready_again = endpoints(2)
    counts = Counter(balancer.pick(QUICK, ready_again, 0.3).endpoint.address.ip for _ in range(40))

    assert counts == {"10.1.0.1": 20, "10.1.0.2": 20}


def test_what_was_tried_is_not_tried_again() -> None:
    balancer = Balancer(rng=Random(1))
    candidates = endpoints(3)
    tried: set[EndpointKey] = set()
    for _ in range(3):
        tried.add(balancer.pick(QUICK, candidates, 0.0, exclude=tried).endpoint.key)
    assert len(tried) == 3
    with pytest.raises(NoEndpoints, match="each of the 3 ready endpoints of shop/web:81 was tried"):
        balancer.pick(QUICK, candidates, 0.0, exclude=tried)


@pytest.mark.parametrize(
    ("candidates", "why"),
    [
        ((), "shop/web:80 has no endpoints"),
        (endpoints(2, not_ready=(1, 2)), "none of the 2 endpoints of shop/web:80 is"),
    ],
)
def test_nobody_to_pick_is_a_failure_of_the_connection(candidates: tuple[Endpoint, ...], why: str) -> None:
    with pytest.raises(NoEndpoints, match=why) as caught:
        Balancer(rng=Random(1)).pick(FAIR, candidates, 0.0)
    assert caught.value.reason is CloseReason.NO_SERVICE_ENDPOINTS


def test_a_pick_ends_once() -> None:
    balancer = Balancer(rng=Random(1))
    (endpoint,) = endpoints(1)
    first, second = (balancer.pick(QUICK, (endpoint,), 0.0) for _ in range(2))
    first.failed(0.1)
    first.release(0.2)
    first.connected(0.2)
    first.failed(0.2)
    assert balancer.load_of(endpoint, 0.1) == EndpointLoad(open_connections=1, latency_s=1.0)
    second.release(0.2)
    assert balancer.load_of(endpoint, 0.2).open_connections == 0


def test_a_pod_that_takes_over_an_address_starts_afresh() -> None:
    def endpoint(uid: str) -> Endpoint:
        workload = Workload(
            uid=uid,
            name=ObjectName("shop", "web"),
            service_account="web",
            node="node-1",
            addresses=("10.1.0.1",),
            identity=SpiffeId.workload("example.org", "shop", "web"),
            enrolled=True,
        )
        return Endpoint(address=EndpointAddress("10.1.0.1", 8080), workload=workload)

    balancer = Balancer(rng=Random(1))
    old = balancer.pick(QUICK, (endpoint("1"),), 0.0)
    old.connected(3.0)
    assert balancer.load_of(endpoint("2"), 3.0) == EndpointLoad(0, None)
    balancer.pick(QUICK, (endpoint("2"),), 3.0)
    old.release(4.0)
    assert balancer.load_of(endpoint("2"), 4.0).open_connections == 1


def test_what_is_idle_for_long_is_forgotten_and_what_is_in_use_is_not() -> None:
    balancer = Balancer(rng=Random(1))
    used, *idle = endpoints(50)
    held = balancer.pick(QUICK, (used,), 0.0)
    held.connected(0.1)
    for each in idle:
        balancer.pick(QUICK, (each,), 0.0).release(0.1)
    for tick in range(100):
        balancer.pick(FAIR, endpoints(1), 100.0 + tick).release(100.0 + tick)
    assert balancer.load_of(used, 200.0).open_connections == 1
    assert len(balancer._states._states) <= 2
    assert len(balancer._pools._pools) == 1


def test_endpoints_that_are_new_at_each_pick_do_not_pile_up() -> None:
    """Jobs that come and go: each pick of the service finds other pods."""
    balancer = Balancer(rng=Random(1))
    service = ServicePort(service=ObjectName("shop", "jobs"), port=80)
    for second in range(2000):
        candidates = tuple(
            Endpoint(address=EndpointAddress(f"10.{second >> 8}.{second & 255}.{number}", 80), workload=None)
            for number in range(1, 11)
        )
        balancer.pick(service, candidates, float(second)).release(float(second))
    assert len(list(balancer.loads(2000.0))) < 5000
