"""What keeps a connection between two pods of a node with the agent, and what lets it go."""

import time
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from ca.manifests import parse_object
from ca.spiffe import SpiffeId
from node_agent.balance import Balancer
from node_agent.model import Endpoint, EndpointAddress, OriginalDestination, Workload
from node_agent.policy import PolicyEngine
from node_agent.proxy.lane_grants import LaneRules
from node_agent.proxy.live import LiveConnections
from node_agent.proxy.policy_counts import PolicyCounts
from node_agent.proxy.policy_gate import PolicyGate
from node_agent.proxy.routes import Route
from node_agent.registry import Registry, Update
from node_agent.telemetry.metrics import Metrics
from tests.manifest_builder import authorization_policy, meshed_namespace, node, peer_authentication, pod, service

_CLIENT, _WEB_1, _WEB_2, _ELSEWHERE = "10.1.0.1", "10.1.0.2", "10.1.0.3", "10.2.0.4"
_SERVICE = OriginalDestination("10.96.0.1", 80)
_DIRECT = OriginalDestination(_WEB_1, 8080)


class _Node:
    """A client and a service of two pods, all on node-1, in a mesh whose default is the lane."""

    def __init__(self, *more: Any, default: str = "lane") -> None:
        self.registry = Registry("cluster.local")
        self.engine = PolicyEngine()
        self.balancer = Balancer(rng=Random(1))
        self.served = {"uid-client", "uid-web-1", "uid-web-2"}
        self.distrusted: SpiffeId | None = None
        gate = PolicyGate(
            engine=self.engine,
            registry=self.registry,
            live=LiveConnections(),
            counts=PolicyCounts(Metrics()),
            clock=time.monotonic,
        )
        self.rules = LaneRules(
            registry=self.registry,
            balancer=self.balancer,
            policies=gate,
            is_trusted=lambda identity: identity != self.distrusted,
            node="node-1",
            default=default,
        )
        self.apply(
            node("node-1", "10.1.0.0/24"),
            node("node-2", "10.2.0.0/24"),
            meshed_namespace(),
            pod("client", _CLIENT, labels={"app": "client"}, service_account="client"),
            pod("web-1", _WEB_1),
            pod("web-2", _WEB_2),
            service("web", _SERVICE.ip),
            *more,
        )

    def apply(self, *objects: Any) -> None:
        changes = self.registry.apply(Update(upserts=objects))
        self.engine.apply(changes.policies)

    def may(self, destination: OriginalDestination) -> dict[str, int]:
        """Where it may go by the lane, with the weights."""
        source = self.registry.workload_at(_CLIENT)
        assert source is not None
        found = self.rules.endpoints(
            source, _CLIENT, destination, self._route(destination), 0.0, is_served=lambda each: each.uid in self.served
        )
        return {each.address.ip: weight for each, weight in found}

    def _route(self, destination: OriginalDestination) -> Route:
        port = self.registry.service_at(*destination)
        if port is not None:
            return Route(service=port, candidates=self.registry.endpoints(port, 4), traffic=self.registry.traffic(port))
        workload = self.registry.workload_at(destination.ip)
        return Route(service=None, candidates=(Endpoint(address=EndpointAddress(*destination), workload=workload),))


def _traffic(spec: dict[str, Any]) -> Any:
    return parse_object(
        {
            "apiVersion": "ringfence.io/v1alpha1",
            "kind": "TrafficPolicy",
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"targetRef": {"kind": "Service", "name": "web"}, **spec},
        }
    )


def test_two_pods_of_a_service_are_had_in_equal_shares_and_one_by_its_address_alone() -> None:
    here = _Node()
    assert here.may(_SERVICE) == {_WEB_1: 1 << 19, _WEB_2: 1 << 19}
    assert here.may(_DIRECT) == {_WEB_1: 1 << 20}


_CLOSED = {"action": "DENY", "rules": [{"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/client"]}}]}]}
_NOT_MESHED = {"app": "web", "ringfence.io/mesh": "disabled"}
_ONE_CLOSED = {**_CLOSED, "selector": {"matchLabels": {"only": "web-2"}}}


@pytest.mark.parametrize(
    ("what", "objects", "also_direct"),
    [
        ("it is denied", [authorization_policy("no", _CLOSED)], True),
        (
            "one endpoint of two is denied",
            [authorization_policy("no", _ONE_CLOSED), pod("web-2", _WEB_2, labels={"app": "web", "only": "web-2"})],
            False,
        ),
        ("encryption is asked for", [peer_authentication("strict", "STRICT")], True),
        ("one endpoint is on another node", [pod("web-3", _ELSEWHERE, node_name="node-2")], False),
        ("one endpoint is not in the mesh", [pod("web-2", _WEB_2, labels=_NOT_MESHED)], False),
        ("it wants the PROXY protocol", [pod("web-1", _WEB_1, proxy_protocol_ports=(8080,))], True),
        ("there is a limit", [_traffic({"limits": {"maxConnections": 10}})], False),
        ("there is a time limit", [_traffic({"timeouts": {"idle": "10s"}})], False),
        ("it is checked", [_traffic({"healthCheck": {}})], False),
        ("clients stay with an endpoint", [_traffic({"loadBalancing": {"policy": "consistent-hash"}})], False),
        ("the service says no", [replace(service("web", _SERVICE.ip), same_node="tunnel")], False),
        ("the namespace says no", [replace(meshed_namespace(), same_node="tunnel")], True),
    ],
)
def test_the_agent_keeps_what_it_is_needed_for(what: str, objects: list[Any], also_direct: bool) -> None:
    here = _Node()
    here.apply(*objects)
    assert here.may(_SERVICE) == {}, what
    assert bool(here.may(_DIRECT)) is not also_direct, what


def test_who_is_not_trusted_or_not_served_here_is_not_reached() -> None:
    here = _Node()
    web = here.registry.workload_at(_WEB_1)
    assert isinstance(web, Workload)
    here.distrusted = web.identity
    assert here.may(_SERVICE) == here.may(_DIRECT) == {}
    here.distrusted = here.registry.workload_at(_CLIENT).identity  # type: ignore[union-attr]
    assert here.may(_SERVICE) == here.may(_DIRECT) == {}
    here.distrusted = None
    assert here.may(_DIRECT)
    here.served.discard("uid-web-1")
    assert here.may(_SERVICE) == here.may(_DIRECT) == {}


def test_the_service_is_asked_before_its_namespace_and_that_before_the_mesh() -> None:
    here = _Node(default="tunnel")
    assert here.may(_SERVICE) == here.may(_DIRECT) == {}
    here.apply(replace(meshed_namespace(), same_node="lane"))
    assert here.may(_SERVICE)
    assert here.may(_DIRECT)
    here.apply(replace(service("web", _SERVICE.ip), same_node="tunnel"))
    assert here.may(_SERVICE) == {}
    assert here.may(_DIRECT)


def test_an_endpoint_that_is_ejected_gets_nothing_and_the_lane_is_told_of_it() -> None:
    here = _Node(_traffic({"outlierDetection": {"maxEjectionPercent": 100}}))
    told: list[EndpointAddress] = []
    here.balancer.on_health_changed.append(told.append)
    port = here.registry.service_at(*_SERVICE)
    assert port is not None
    candidates, traffic = here.registry.endpoints(port, 4), here.registry.traffic(port)
    good, bad = sorted(candidates, key=lambda each: each.address)
    for _ in range(5):
        here.balancer.pick(port, candidates, 0.0, traffic=traffic, exclude={good.key}).failed(0.0)
    assert told[-1] == bad.address
    assert here.may(_SERVICE) == {_WEB_1: 1 << 20}
