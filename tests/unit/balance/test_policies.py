"""Weights, slow start, subsets, locality, ejection: which share goes where."""

from collections import Counter, deque
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from ca.manifests.traffic import (
    Balancing,
    HashBy,
    LoadBalancing,
    LocalityMode,
    LocalityPreference,
    OutlierDetection,
    Traffic,
    WeightRule,
)
from ca.spiffe import SpiffeId
from node_agent.balance import Balancer, Client, Near, NoEndpoints, Pick
from node_agent.balance.tiers import build
from node_agent.model import Endpoint, EndpointAddress, Locality, ObjectName, ServicePort, Workload

SERVICE = ServicePort(service=ObjectName("shop", "web"), port=80)
RANDOMIZED = [LoadBalancing.LEAST_LATENCY, LoadBalancing.LEAST_CONNECTIONS, LoadBalancing.RANDOM]
HERE = Client(Near("node-1", "zone-a", "region-1"))


def _endpoint(number: int, *, node: str = "", zone: str = "", region: str = "", **labels: str) -> Endpoint:
    ip = f"10.1.0.{number}"
    workload = Workload(
        uid=str(number),
        name=ObjectName("shop", f"web-{number}"),
        service_account="web",
        node=node,
        addresses=(ip,),
        identity=SpiffeId.workload("example.org", "shop", "web"),
        enrolled=True,
        labels=labels,
        locality=Locality(region=region, zone=zone),
    )
    return Endpoint(address=EndpointAddress(ip, 8080), workload=workload)


def _shares(
    balancer: Balancer, candidates: tuple[Endpoint, ...], traffic: Traffic, now: float = 0.0, **more: Any
) -> Any:
    counts: Counter[int] = Counter()
    for _ in range(4000):
        pick = balancer.pick(SERVICE, candidates, now, traffic=traffic, **more)
        pick.release(now)
        counts[candidates.index(pick.endpoint)] += 1
    return [counts[index] / 4000 for index in range(len(candidates))]


@pytest.mark.parametrize("policy", LoadBalancing)
def test_weights_are_shares(policy: LoadBalancing) -> None:
    candidates = (_endpoint(1, size="s"), _endpoint(2, size="m"), _endpoint(3, size="l"), _endpoint(4, size="off"))
    rules = tuple(WeightRule(labels={"size": size}, weight=weight) for size, weight in (("m", 3), ("l", 6), ("off", 0)))
    traffic = Traffic(balancing=Balancing(policy=policy, weights=rules))
    balancer = Balancer(rng=Random(1))
    counts: Counter[int] = Counter()
    for number in range(4000):
        client = Client(address=f"10.9.{number // 256}.{number % 256}")
        pick = balancer.pick(SERVICE, candidates, 0.0, traffic=traffic, client=client)
        pick.release(0.0)
        counts[candidates.index(pick.endpoint)] += 1
    assert [counts[index] / 4000 for index in range(4)] == pytest.approx([0.1, 0.3, 0.6, 0.0], abs=0.04)


@pytest.mark.parametrize("policy", LoadBalancing)
def test_weights_hold_when_connections_last_and_connect_times_scatter(policy: LoadBalancing) -> None:
    candidates = (_endpoint(1, size="s"), _endpoint(2, size="s"), _endpoint(3, size="l"))
    rules = (WeightRule(labels={"size": "l"}, weight=3),)
    traffic = Traffic(balancing=Balancing(policy=policy, weights=rules))
    rng = Random(1)
    balancer = Balancer(rng=rng)
    counts: Counter[int] = Counter()
    live: deque[Pick] = deque()
    now = 0.0
    for number in range(6000):
        now += 0.01
        pick = balancer.pick(
            SERVICE, candidates, now, traffic=traffic, client=Client(address=f"10.9.{number // 256}.{number % 256}")
        )
        counts[candidates.index(pick.endpoint)] += 1
        pick.connected(now + rng.expovariate(1000.0))
        live.append(pick)
        if len(live) > 20:
            live.popleft().release(now)
    assert [counts[index] / 6000 for index in range(3)] == pytest.approx([0.2, 0.2, 0.6], abs=0.06)


@pytest.mark.parametrize("policy", [*RANDOMIZED, LoadBalancing.ROUND_ROBIN])
def test_an_endpoint_that_is_new_gets_its_share_little_by_little(policy: LoadBalancing) -> None:
    traffic = Traffic(balancing=Balancing(policy=policy, slow_start_s=100.0))
    balancer = Balancer(rng=Random(1))
    old = (_endpoint(1), _endpoint(2))
    assert _shares(balancer, old, traffic) == pytest.approx([0.5, 0.5], abs=0.03)
    three = (*old, _endpoint(3))
    begun = _shares(balancer, three, traffic, 1000.0)[2]
    halfway = _shares(balancer, three, traffic, 1050.0)[2]
    through = _shares(balancer, three, traffic, 1101.0)[2]
    assert begun < 0.08 < halfway < 0.28 < through


def test_endpoints_that_are_there_from_the_beginning_do_not_start_slowly() -> None:
    traffic = Traffic(balancing=Balancing(policy=LoadBalancing.RANDOM, slow_start_s=100.0))
    candidates = tuple(_endpoint(number) for number in range(1, 5))
    assert _shares(Balancer(rng=Random(1)), candidates, traffic) == pytest.approx([0.25] * 4, abs=0.03)


def test_a_subset_is_those_with_all_of_its_labels() -> None:
    traffic = Traffic(balancing=Balancing(subset={"version": "v2", "app": "web"}))
    candidates = (_endpoint(1, version="v2"), _endpoint(2, version="v2", app="web"))
    assert _shares(Balancer(rng=Random(1)), candidates, traffic) == [0.0, 1.0]
    with pytest.raises(NoEndpoints, match="none of the 1 ready endpoints of shop/web:80 is in the subset"):
        Balancer(rng=Random(1)).pick(SERVICE, candidates[:1], 0.0, traffic=traffic)


def test_a_hash_leads_the_same_client_to_the_same_endpoint_on_every_node() -> None:
    candidates = tuple(_endpoint(number) for number in range(1, 8))
    traffic = Traffic(balancing=Balancing(policy=LoadBalancing.CONSISTENT_HASH))
    found = set()
    for seed in range(5):
        balancer = Balancer(rng=Random(seed))
        order = Random(seed).sample(candidates, len(candidates))
        pick = balancer.pick(SERVICE, tuple(order), 0.0, traffic=traffic, client=Client(address="10.9.0.1"))
        found.add(pick.endpoint)
    assert len(found) == 1
    by_identity = Traffic(balancing=Balancing(policy=LoadBalancing.CONSISTENT_HASH, hash_by=HashBy.SOURCE_IDENTITY))
    balancer = Balancer(rng=Random(1))
    same = {
        balancer.pick(
            SERVICE, candidates, 0.0, traffic=by_identity, client=Client(address=str(number), identity="spiffe://a/b")
        ).endpoint
        for number in range(20)
    }
    assert len(same) == 1


def _zones(mode: LocalityMode, **more: Any) -> Traffic:
    return Traffic(
        balancing=Balancing(policy=LoadBalancing.RANDOM),
        locality=LocalityPreference(mode=mode, **more),
        outlier=OutlierDetection(enabled=False),
    )


_FAR = tuple(_endpoint(20 + number, node="node-9", zone="zone-b", region="region-1") for number in range(4))
_NEAR = tuple(_endpoint(10 + number, node="node-2", zone="zone-a", region="region-1") for number in range(4))


def test_the_near_zone_gets_everything_while_it_is_healthy() -> None:
    shares = _shares(Balancer(rng=Random(1)), (*_NEAR, *_FAR), _zones(LocalityMode.PREFER), client=HERE)
    assert sum(shares[:4]) == 1.0
    assert shares[:4] == pytest.approx([0.25] * 4, abs=0.03)


@pytest.mark.parametrize(("unhealthy", "near_share"), [(1, 1.0), (2, 0.5 / 0.7), (3, 0.25 / 0.7), (4, 0.0)])
def test_what_the_near_zone_is_too_ill_for_spills_over(unhealthy: int, near_share: float) -> None:
    balancer = Balancer(rng=Random(1))
    traffic = _zones(LocalityMode.PREFER)
    for each in _NEAR[:unhealthy]:
        balancer.set_unhealthy(each, True, 0.0)
    shares = _shares(balancer, (*_NEAR, *_FAR), traffic, client=HERE)
    assert sum(shares[:4]) == pytest.approx(near_share, abs=0.03)
    assert sum(shares[:unhealthy]) == 0.0


def test_strictly_near_is_nobody_rather_than_somebody_far_away() -> None:
    traffic = _zones(LocalityMode.STRICT, levels=("zone",))
    assert sum(_shares(Balancer(rng=Random(1)), (*_NEAR, *_FAR), traffic, client=HERE)[:4]) == 1.0
    with pytest.raises(NoEndpoints, match="near enough"):
        Balancer(rng=Random(1)).pick(SERVICE, _FAR, 0.0, traffic=traffic, client=HERE)


def test_the_same_node_can_be_preferred_to_the_same_zone() -> None:
    own = _endpoint(1, node="node-1", zone="zone-a", region="region-1")
    traffic = _zones(LocalityMode.PREFER, levels=("node", "zone"))
    assert _shares(Balancer(rng=Random(1)), (own, *_NEAR), traffic, client=HERE)[0] == 1.0


def test_without_labels_nothing_is_near() -> None:
    candidates = (_endpoint(1), _endpoint(2))
    traffic = _zones(LocalityMode.PREFER)
    assert _shares(Balancer(rng=Random(1)), candidates, traffic, client=Client()) == pytest.approx([0.5, 0.5], abs=0.03)


def test_when_too_few_are_healthy_health_is_not_looked_at() -> None:
    balancer = Balancer(rng=Random(1))
    traffic = Traffic(balancing=Balancing(policy=LoadBalancing.RANDOM), panic_threshold_percent=50)
    for each in _NEAR[:2]:
        balancer.set_unhealthy(each, True, 0.0)
    assert sum(_shares(balancer, _NEAR, traffic)[:2]) == 0.0
    balancer.set_unhealthy(_NEAR[2], True, 0.0)
    assert _shares(balancer, _NEAR, traffic) == pytest.approx([0.25] * 4, abs=0.03)


def test_everything_unhealthy_is_served_all_the_same_unless_panic_is_off() -> None:
    balancer = Balancer(rng=Random(1))
    for each in _NEAR:
        balancer.set_unhealthy(each, True, 0.0)
    balancer.pick(SERVICE, _NEAR, 0.0, traffic=Traffic(panic_threshold_percent=1))
    with pytest.raises(NoEndpoints, match="healthy"):
        balancer.pick(SERVICE, _NEAR, 0.0, traffic=Traffic(panic_threshold_percent=0))


# -- ejection ---------------------------------------------------------------------


def _fail(balancer: Balancer, endpoint: Endpoint, traffic: Traffic, now: float) -> bool:
    """Try until this endpoint is picked, and fail there; False when it is not picked any more."""
    for _ in range(200):
        pick = balancer.pick(SERVICE, _NEAR, now, traffic=traffic)
        if pick.endpoint is endpoint:
            pick.failed(now)
            return True
        pick.connected(now)
        pick.release(now)
    return False


def _ejecting(**more: Any) -> Traffic:
    return Traffic(
        balancing=Balancing(policy=LoadBalancing.RANDOM),
        outlier=OutlierDetection(connect_failures=3, base_ejection_s=10.0, max_ejection_s=25.0, **more),
    )


def test_three_failures_in_a_row_eject_and_a_good_connect_between_them_does_not() -> None:
    balancer, traffic, bad = Balancer(rng=Random(1)), _ejecting(), _NEAR[0]
    for now in (0.0, 1.0):
        assert _fail(balancer, bad, traffic, now)
    while True:
        pick = balancer.pick(SERVICE, _NEAR, 2.0, traffic=traffic)
        pick.connected(2.0)
        pick.release(2.0)
        if pick.endpoint is bad:
            break
    for now in (3.0, 4.0, 5.0):
        assert _fail(balancer, bad, traffic, now)
    assert not _fail(balancer, bad, traffic, 6.0)
    load = balancer.load_of(bad, 6.0)
    assert (load.health, load.why, load.ejected_for_s) == ("ejected", "consecutive connect failures", 9.0)


def test_when_its_time_is_up_one_connection_probes_it() -> None:
    balancer, traffic, bad = Balancer(rng=Random(1)), _ejecting(), _NEAR[0]
    for now in (0.0, 0.0, 0.0):
        assert _fail(balancer, bad, traffic, now)
    assert balancer.load_of(bad, 10.0).health == "probing"
    picks = [balancer.pick(SERVICE, _NEAR, 10.0, traffic=traffic) for _ in range(200)]
    probes = [pick for pick in picks if pick.endpoint is bad]
    assert len(probes) == 1, "one at a time"
    probes[0].failed(10.0)
    assert balancer.load_of(bad, 10.0).ejected_for_s == 20.0, "the second time is longer"
    assert not _fail(balancer, bad, traffic, 29.0)
    assert _fail(balancer, bad, traffic, 30.0)
    assert balancer.load_of(bad, 30.0).ejected_for_s == 25.0, "there is a most"
    while (pick := balancer.pick(SERVICE, _NEAR, 55.0, traffic=traffic)).endpoint is not bad:
        pick.release(55.0)
    pick.connected(55.0)
    assert balancer.load_of(bad, 55.0).health == "healthy"


def test_resets_before_the_first_byte_eject_too() -> None:
    balancer, traffic, bad = Balancer(rng=Random(1)), _ejecting(early_resets=2), _NEAR[0]
    resets = 0
    for _ in range(200):
        pick = balancer.pick(SERVICE, _NEAR, 0.0, traffic=traffic)
        pick.connected(0.0)
        if pick.endpoint is bad:
            pick.reset_early(0.0)
            resets += 1
        pick.release(0.0)
    assert resets == 2
    assert balancer.load_of(bad, 0.0).why == "consecutive resets before the first byte"


def test_an_endpoint_far_slower_than_its_peers_is_ejected_if_that_is_asked_for() -> None:
    balancer, traffic, slow = Balancer(rng=Random(1)), _ejecting(latency_factor=5.0), _NEAR[0]
    now = 0.0
    for _ in range(300):
        now += 0.05
        pick = balancer.pick(SERVICE, _NEAR, now, traffic=traffic)
        pick.connected(now + (0.1 if pick.endpoint is slow else 0.004))
        pick.release(now)
        if balancer.load_of(slow, now).health == "ejected":
            break
    assert balancer.load_of(slow, now).why == "connect latency far off its peers'"


def test_a_tenth_may_be_ejected_but_one_always_and_never_the_last() -> None:
    balancer, traffic = Balancer(rng=Random(1)), _ejecting()
    for bad in _NEAR[:3]:
        for _ in range(6):
            _fail(balancer, bad, traffic, 0.0)
    assert [balancer.load_of(each, 0.0).health for each in _NEAR].count("ejected") == 1
    alone = Balancer(rng=Random(1))
    for _ in range(10):
        alone.pick(SERVICE, _NEAR[:1], 0.0, traffic=traffic).failed(0.0)
    assert alone.load_of(_NEAR[0], 0.0).health == "healthy"


def test_when_an_endpoint_falls_ill_only_its_clients_move_and_when_it_is_well_they_come_back() -> None:
    candidates = tuple(_endpoint(number) for number in range(1, 21))
    traffic = Traffic(balancing=Balancing(policy=LoadBalancing.CONSISTENT_HASH))
    balancer = Balancer(rng=Random(1))

    def places() -> dict[str, Endpoint]:
        found = {}
        for number in range(500):
            client = Client(address=f"10.9.{number // 250}.{number % 250}")
            pick = balancer.pick(SERVICE, candidates, 0.0, traffic=traffic, client=client)
            pick.release(0.0)
            found[client.address] = pick.endpoint
        return found

    before = places()
    ill = candidates[7]
    balancer.set_unhealthy(ill, True, 0.0)
    during = places()
    moved = {client for client, endpoint in before.items() if during[client] is not endpoint}
    assert moved == {client for client, endpoint in before.items() if endpoint is ill}
    assert len({during[client].address for client in moved}) > 5, "they are not all sent to one other endpoint"
    balancer.set_unhealthy(ill, False, 0.0)
    assert places() == before


def test_the_health_of_an_endpoint_is_looked_at_anew_by_the_services_that_have_it_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sorting a thousand endpoints takes milliseconds: one that flaps somewhere must not cost everybody that."""
    sorted_anew: list[int] = []

    def counted(members: Any, *more: Any) -> Any:
        sorted_anew.append(len(members))
        return build(members, *more)

    monkeypatch.setattr("node_agent.balance.pools.build", counted)
    balancer = Balancer(rng=Random(1))
    flapping = _endpoint(1)
    ours = tuple(_endpoint(number) for number in range(10, 15))
    shared = (flapping, _endpoint(2))
    services = [(SERVICE, ours), (replace(SERVICE, port=81), (flapping,)), (replace(SERVICE, port=82), shared)]

    def picks() -> None:
        for service, candidates in services:
            balancer.pick(service, candidates, 1.0).release(1.0)

    picks()
    assert sorted_anew == [5, 1, 2]
    sorted_anew.clear()
    for is_unhealthy in (True, False, True):
        balancer.set_unhealthy(flapping, is_unhealthy, 1.0)
        picks()
    assert sorted_anew == [1, 2] * 3


def test_an_endpoint_that_nobody_used_for_long_does_not_start_slowly_again() -> None:
    """What is known of it is forgotten after a minute; that it is not new is known from the service."""
    traffic = Traffic(balancing=Balancing(policy=LoadBalancing.RANDOM, slow_start_s=100.0))
    near, far, other = (_endpoint(number) for number in (1, 2, 3))
    candidates = (near, far, other)
    balancer = Balancer(rng=Random(1))
    balancer.pick(SERVICE, candidates, 0.0, traffic=traffic).release(0.0)
    for second in range(200):  # retries that keep to one endpoint: the others are forgotten
        exclude = {far.key, other.key}
        balancer.pick(SERVICE, candidates, float(second), traffic=traffic, exclude=exclude).release(float(second))
    balancer.set_unhealthy(other, True, 200.0)
    balancer.set_unhealthy(other, False, 200.0)
    assert _shares(balancer, candidates, traffic, now=200.0)[1] > 0.4
