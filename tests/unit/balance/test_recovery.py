"""A zone that was lost and is back: all of it is used again soon, and nobody pays much for finding out."""

from collections import Counter
from random import Random

import pytest

from ca.manifests.traffic import (
    Balancing,
    LoadBalancing,
    LocalityMode,
    LocalityPreference,
    OutlierDetection,
    Traffic,
)
from ca.spiffe import SpiffeId
from node_agent.balance import Balancer, Client, Near, Pick
from node_agent.model import Endpoint, EndpointAddress, Locality, ObjectName, ServicePort, Workload

SERVICE = ServicePort(service=ObjectName("shop", "web"), port=80)
_ZONE = 12
_ONE_IN = 256


def _endpoint(number: int, zone: str, *, node: str = "") -> Endpoint:
    ip = f"10.1.0.{number}"
    workload = Workload(
        uid=str(number),
        name=ObjectName("shop", f"web-{number}"),
        service_account="web",
        node=node or f"node-{number}",
        addresses=(ip,),
        identity=SpiffeId.workload("example.org", "shop", "web"),
        enrolled=True,
        locality=Locality(region="r", zone=zone),
    )
    return Endpoint(address=EndpointAddress(ip, 8080), workload=workload)


class _Service:
    """Endpoints of which some are gone, and connections to it one after the other, ten milliseconds apart."""

    def __init__(self, endpoints: tuple[Endpoint, ...], **traffic: object) -> None:
        self.balancer = Balancer(rng=Random(5))
        self.endpoints = endpoints
        self.traffic = Traffic(**traffic)  # type: ignore[arg-type]
        self.gone: set[Endpoint] = set()
        self.now = 0.0
        self.timed_out = 0
        self._waiting: list[tuple[float, Pick]] = []

    def connect(self, times: int, *, client: Client | None = None) -> Counter[str]:
        """Zones that answered; who is gone costs five seconds, in which the others go on."""
        answered: Counter[str] = Counter()
        for number in range(times):
            self.now += 0.01
            while self._waiting and self._waiting[0][0] <= self.now:
                self._waiting.pop(0)[1].failed(self.now)
                self.timed_out += 1
            who = client or Client(address=f"10.9.0.{number}")
            pick = self.balancer.pick(SERVICE, self.endpoints, self.now, traffic=self.traffic, client=who)
            if pick.endpoint in self.gone:
                self._waiting.append((self.now + 5.0, pick))
            else:
                pick.connected(self.now + 0.001)
                pick.release(self.now + 0.001)
                assert pick.endpoint.workload is not None
                answered[pick.endpoint.workload.locality.zone] += 1
        return answered

    def settle(self) -> None:
        """What waits has its answer."""
        for at, pick in self._waiting:
            self.now = max(self.now, at)
            pick.failed(self.now)
        self._waiting.clear()

    def health(self, endpoint: Endpoint) -> str:
        return self.balancer.load_of(endpoint, self.now).health


_TWO_ZONES = tuple(_endpoint(n, "a" if n <= _ZONE else "b") for n in range(1, 2 * _ZONE + 1))
_LOST = _TWO_ZONES[_ZONE:]


def _after_an_outage(seconds: int = 60, **traffic: object) -> _Service:
    service = _Service(_TWO_ZONES, **traffic)
    service.connect(1000)
    service.gone = set(_LOST)
    service.connect(seconds * 100)
    return service


def test_a_zone_that_is_back_has_its_share_within_seconds() -> None:
    service = _after_an_outage()
    service.gone.clear()
    service.connect(600)  # at most 2.56 s until one is tried, and one that is being tried waits up to 5 s
    assert service.connect(1000)["b"] > 400


def test_while_it_is_lost_few_connections_find_out() -> None:
    """One in 256 that is meant to, and those for which two lost ones were drawn several times."""
    service = _after_an_outage()
    before = service.timed_out
    assert before >= _ZONE, "each was met once"
    service.connect(10 * _ONE_IN)
    assert service.timed_out - before <= 25, "one in a hundred"


def test_one_that_answers_does_not_speak_for_a_zone_that_does_not() -> None:
    service = _after_an_outage()
    service.gone = set(_LOST[1:])
    before = service.timed_out
    service.connect(20 * _ONE_IN)
    service.settle()
    assert service.timed_out - before <= 20 + 2 * 4, "the tries, and what two at a time have cost until one failed"


def test_the_ejected_of_a_zone_are_back_with_it() -> None:
    service = _after_an_outage(
        outlier=OutlierDetection(connect_failures=1, base_ejection_s=300.0, max_ejection_percent=25)
    )
    ejected = [each for each in _LOST if service.health(each) == "ejected"]
    assert len(ejected) == 6
    service.settle()
    service.gone.clear()
    service.connect(1200)
    assert [service.health(each) for each in ejected] == ["healthy"] * 6


def test_an_ejected_one_alone_has_its_time() -> None:
    service = _Service(_TWO_ZONES, outlier=OutlierDetection(connect_failures=1, base_ejection_s=300.0))
    service.gone = {_LOST[0]}
    service.connect(2000)
    assert service.health(_LOST[0]) == "ejected"
    service.gone.clear()
    service.connect(2000)
    assert service.health(_LOST[0]) == "ejected"


@pytest.mark.parametrize("policy", LoadBalancing)
def test_with_each_policy_an_ejection_ends_when_the_zone_answers(policy: LoadBalancing) -> None:
    service = _after_an_outage(
        balancing=Balancing(policy=policy),
        outlier=OutlierDetection(
            connect_failures=1, base_ejection_s=600.0, max_ejection_s=600.0, max_ejection_percent=20
        ),
    )
    service.settle()
    assert [service.health(each) for each in _LOST].count("ejected") == 4
    service.gone.clear()
    service.connect(3000)
    assert {service.health(each) for each in _LOST} == {"healthy"}


def test_a_node_counts_where_nobody_knows_zones() -> None:
    endpoints = tuple(_endpoint(n, "", node=f"node-{n % 3}") for n in range(1, 13))
    service = _Service(endpoints)
    service.connect(1000)
    lost = {each for each in endpoints if each.workload and each.workload.node == "node-1"}
    service.gone = set(lost)
    service.connect(6000)
    service.gone.clear()
    service.connect(600)
    counts: Counter[bool] = Counter()
    for _ in range(1000):
        service.now += 0.01
        pick = service.balancer.pick(SERVICE, endpoints, service.now, traffic=service.traffic)
        counts[pick.endpoint in lost] += 1
        pick.connected(service.now)
        pick.release(service.now)
    assert counts[True] > 250


def test_a_zone_that_is_lost_again_and_again_is_left_alone_for_longer() -> None:
    service = _after_an_outage(seconds=20)
    costs = []
    for _ in range(4):
        service.gone.clear()
        service.connect(500)
        service.gone = set(_LOST)
        before = service.timed_out
        service.connect(1500)
        costs.append(service.timed_out - before)
    assert costs[-1] < costs[0] / 2, costs


def test_a_far_zone_is_not_tried_where_near_ones_are_preferred() -> None:
    """Whoever keeps connections near does not want them to find out how far ones are."""
    here = Client(Near("node-1", "a", "r"), "10.9.0.1")
    service = _Service(_TWO_ZONES, locality=LocalityPreference(mode=LocalityMode.PREFER))
    service.gone = set(_LOST)
    assert service.connect(5000, client=here) == {"a": 5000}
    assert service.timed_out == 0


def test_a_client_that_gives_up_leaves_the_zone_as_it_was() -> None:
    service = _after_an_outage()
    service.settle()
    tried = 0
    for _ in range(20 * _ONE_IN):
        service.now += 0.01
        pick = service.balancer.pick(SERVICE, service.endpoints, service.now, traffic=service.traffic)
        if pick.endpoint in service.gone:
            tried += 1
        else:
            pick.connected(service.now)
        pick.release(service.now)
    assert tried >= 2, "it is tried again, by another one"
    service.gone.clear()
    service.connect(600)
    assert service.connect(1000)["b"] > 400


def test_endpoints_that_go_away_are_forgotten() -> None:
    service = _after_an_outage()
    service.endpoints = service.endpoints[:_ZONE]
    service.settle()
    service.gone = set()
    assert service.connect(3 * _ONE_IN) == {"a": 3 * _ONE_IN}


def test_each_address_of_a_pod_is_judged_by_its_own_connections() -> None:
    """A program that listens on 0.0.0.0 only refuses IPv6; IPv4 goes on as if nothing was."""
    balancer, traffic = Balancer(rng=Random(5)), Traffic(outlier=OutlierDetection(connect_failures=1))
    four = tuple(_endpoint(number, "a") for number in (1, 2))
    six = tuple(
        Endpoint(address=EndpointAddress(f"fd00::{number}", 8080), workload=each.workload)
        for number, each in enumerate(four, 1)
    )
    while balancer.load_of(six[0], 1.0).health != "ejected":
        pick = balancer.pick(SERVICE, six, 1.0, traffic=traffic)
        if pick.endpoint is six[0]:
            pick.failed(1.0)
        pick.release(1.0)
    assert [balancer.load_of(each, 1.0).health for each in (*four, six[1])] == ["healthy"] * 3
    picked = set()
    for _ in range(40):
        pick = balancer.pick(SERVICE, four, 1.0, traffic=traffic)
        pick.connected(1.0)
        pick.release(1.0)
        picked.add(pick.endpoint)
    assert picked == set(four)
