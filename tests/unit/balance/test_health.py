"""What becomes of an endpoint that active checks find unhealthy, and healthy again."""

from collections import Counter
from random import Random

from ca.manifests.traffic import DEFAULT, Balancing, LoadBalancing
from node_agent.balance import Balancer
from node_agent.model import Endpoint, EndpointAddress, ObjectName, ServicePort

_WEB = ServicePort(service=ObjectName("shop", "web"), port=80)
_ENDPOINTS = tuple(Endpoint(address=EndpointAddress(f"10.1.0.{number}", 80), workload=None) for number in range(3))
_SLOWLY = type(DEFAULT)(balancing=Balancing(policy=LoadBalancing.RANDOM, slow_start_s=10.0))


def _picks(balancer: Balancer, now: float, count: int = 600) -> Counter[Endpoint]:
    picked: Counter[Endpoint] = Counter()
    for _ in range(count):
        pick = balancer.pick(_WEB, _ENDPOINTS, now, traffic=_SLOWLY)
        picked[pick.endpoint] += 1
        pick.release(now)
    return picked


def test_an_unhealthy_endpoint_gets_nothing_and_begins_slowly_when_it_is_healthy_again() -> None:
    balancer = Balancer(rng=Random(1))
    _picks(balancer, 0.0, 1)
    balancer.set_unhealthy(_ENDPOINTS[0], True, 1.0, why="health check: connect_refused")
    assert _ENDPOINTS[0] not in _picks(balancer, 1.0)
    balancer.set_unhealthy(_ENDPOINTS[0], False, 100.0)
    assert 0 < _picks(balancer, 100.0)[_ENDPOINTS[0]] < 60, "a tenth of its share"
    assert 150 < _picks(balancer, 111.0)[_ENDPOINTS[0]] < 250


def test_why_it_is_unhealthy_is_shown_until_it_is_not() -> None:
    balancer = Balancer(rng=Random(1))
    balancer.set_unhealthy(_ENDPOINTS[0], True, 1.0, why="health check: connect_refused")
    load = balancer.load_of(_ENDPOINTS[0], 1.0)
    assert (load.health, load.why) == ("unhealthy", "health check: connect_refused")
    balancer.set_unhealthy(_ENDPOINTS[0], True, 2.0, why="health check: connect_timeout")
    assert balancer.load_of(_ENDPOINTS[0], 2.0).why == "health check: connect_timeout"
    balancer.set_unhealthy(_ENDPOINTS[0], False, 3.0)
    load = balancer.load_of(_ENDPOINTS[0], 3.0)
    assert (load.health, load.why) == ("healthy", None)


def test_an_endpoint_that_is_healthy_again_is_not_judged_by_how_slow_it_was() -> None:
    balancer = Balancer(rng=Random(1))
    pick = balancer.pick(_WEB, _ENDPOINTS[:1], 0.0)
    pick.failed(3.0)
    balancer.set_unhealthy(_ENDPOINTS[0], True, 3.0)
    assert balancer.load_of(_ENDPOINTS[0], 3.0).latency_s is not None
    balancer.set_unhealthy(_ENDPOINTS[0], False, 4.0)
    assert balancer.load_of(_ENDPOINTS[0], 4.0).latency_s is None
