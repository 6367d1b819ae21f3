"""Which services the kernel may balance at connect: those that need no proxy, and never one that needs a tunnel."""

from dataclasses import replace
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ca.manifests import parse_object
from ca.spiffe import SpiffeId
from node_agent.balance import Balancer
from node_agent.config import CaptureSection, Config
from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.model import EndpointAddress, ObjectName, OriginalDestination
from node_agent.proxy.connect_building import NoneAtConnect
from node_agent.proxy.connect_rules import ConnectRules, Decision, Sources
from node_agent.registry import Registry, Update
from tests.manifest_builder import meshed_namespace, node, pod, service

_CLIENT, _WEB_1, _WEB_2 = "10.1.0.1", "10.1.0.2", "10.1.0.3"
_SERVICE = OriginalDestination("10.96.0.1", 80)
_OUTSIDE = {"app": "web", "ringfence.io/mesh": "disabled"}
_IN_THE_MESH = {"app": "web"}
_AT_1, _AT_2 = EndpointAddress(_WEB_1, 8080), EndpointAddress(_WEB_2, 8080)


class _Node:
    """A client in the mesh, and a service of two pods that are not."""

    def __init__(self, *more: Any, is_default: bool = True, may_check_health: bool = True) -> None:
        self.registry = Registry("cluster.local")
        self.balancer = Balancer(rng=Random(1))
        self.distrusted: SpiffeId | None = None
        self.rules = ConnectRules(
            registry=self.registry,
            balancer=self.balancer,
            require_outside=self._require_outside,
            is_default=is_default,
            may_check_health=may_check_health,
        )
        self.apply(
            node("node-1", "10.1.0.0/24"),
            meshed_namespace(),
            pod("client", _CLIENT, labels={"app": "client"}, service_account="client"),
            pod("web-1", _WEB_1, labels=_OUTSIDE),
            pod("web-2", _WEB_2, labels=_OUTSIDE),
            service("web", _SERVICE.ip),
            *more,
        )

    def apply(self, *objects: Any) -> None:
        self.registry.apply(Update(upserts=objects))

    def decide(self, now: float = 0.0) -> Decision:
        port = self.registry.service_port(ObjectName("shop", "web"), 80)
        assert port is not None
        sources = Sources.of(self.registry.workloads_on("node-1"), lambda identity: identity != self.distrusted)
        return self.rules.decide(port, _SERVICE, sources, now)

    def shares(self) -> dict[EndpointAddress, float] | None:
        """None: they stay with the agent."""
        decision = self.decide()
        return None if decision.why else dict(decision.shares)

    def _require_outside(self, address: EndpointAddress) -> None:
        if address.ip.startswith("10.1."):
            raise ConnectionFailure(CloseReason.UNKNOWN_DESTINATION, f"{address.ip} is in the pod network")


def _traffic(spec: dict[str, Any]) -> Any:
    return parse_object(
        {
            "apiVersion": "ringfence.io/v1alpha1",
            "kind": "TrafficPolicy",
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"targetRef": {"kind": "Service", "name": "web"}, **spec},
        }
    )


def _slice(*ips: str) -> Any:
    return parse_object(
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": "web-4", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
            "endpoints": [{"addresses": [ip]} for ip in ips],
        }
    )


def _route() -> Any:
    return parse_object(
        {
            "apiVersion": "gateway.networking.k8s.io/v1alpha2",
            "kind": "TCPRoute",
            "metadata": {"name": "split", "namespace": "shop"},
            "spec": {
                "parentRefs": [{"group": "", "kind": "Service", "name": "web"}],
                "rules": [{"backendRefs": [{"name": "web", "port": 80, "weight": 1}]}],
            },
        }
    )


def test_endpoints_outside_of_the_mesh_get_their_shares() -> None:
    assert _Node().shares() == {_AT_1: 0.5, _AT_2: 0.5}
    weighted = {"loadBalancing": {"weights": [{"matchLabels": {"version": "2"}, "weight": 3}]}}
    here = _Node(pod("web-2", _WEB_2, labels={**_OUTSIDE, "version": "2"}), _traffic(weighted))
    assert here.shares() == {_AT_1: 0.25, _AT_2: 0.75}


def test_nobody_who_serves_it_is_no_reason_for_the_agent() -> None:
    assert _Node(pod("web-1", _WEB_1, ready=False, labels=_OUTSIDE)).shares() == {_AT_2: 1.0}
    nobody_ready = [pod(f"web-{n}", ip, ready=False, labels=_OUTSIDE) for n, ip in ((1, _WEB_1), (2, _WEB_2))]
    assert _Node(*nobody_ready).shares() == {}
    assert _Node(_slice()).shares() == {}
    assert _Node(_slice("192.0.2.1")).shares() == {EndpointAddress("192.0.2.1", 8080): 1.0}


@pytest.mark.parametrize(
    ("why", "objects"),
    [
        ("endpoint shop/web-2 is in the mesh", [pod("web-2", _WEB_2, labels=_IN_THE_MESH)]),
        ("endpoint shop/web-2 is in the mesh", [pod("web-2", _WEB_2, labels=_IN_THE_MESH, ready=False)]),
        ("endpoint shop/client is in the mesh", [_slice(_CLIENT, "192.0.2.1")]),
        ("10.1.0.77 is in the pod network", [_slice("10.1.0.77")]),
        ("a TCPRoute splits it", [_route()]),
        ("limits, rate limits or faults", [_traffic({"limits": {"maxConnections": 9}})]),
        ("limits, rate limits or faults", [_traffic({"rateLimit": {"connectionsPerSecond": 9}})]),
        ("timeouts of its own", [_traffic({"timeouts": {"idle": "1m"}})]),
        ("slow start", [_traffic({"loadBalancing": {"slowStart": "10s"}})]),
        ("ejection by latency", [_traffic({"outlierDetection": {"latencyFactor": 5}})]),
        ("consistent hashing", [_traffic({"loadBalancing": {"policy": "consistent-hash"}})]),
        ("10.96.0.1 is another Service's", [service("a-web", _SERVICE.ip)]),
    ],
)
def test_what_needs_the_agent_stays_with_it(why: str, objects: list[Any]) -> None:
    here = _Node(*objects)
    assert why in here.decide().why


def test_a_revoked_workload_and_a_node_without_the_mesh_keep_everything_with_the_agent() -> None:
    here = _Node()
    client = here.registry.workload_at(_CLIENT)
    assert client is not None
    here.distrusted = client.identity
    assert "identity of shop/client" in here.decide().why
    here.distrusted = None
    assert not here.decide().why
    here.apply(pod("client", _CLIENT, labels={"app": "client", "ringfence.io/mesh": "disabled"}))
    assert here.decide().why == "no workload of this node is in the mesh"


def test_health_is_followed_and_with_too_few_the_agent_takes_over() -> None:
    checked = {"healthCheck": {"type": "tcp"}}
    assert "health checks" in _Node(_traffic(checked), may_check_health=False).decide().why
    here = _Node(pod("web-3", "10.1.0.4", labels=_OUTSIDE), _traffic(checked))
    port = here.registry.service_at(*_SERVICE)
    assert port is not None
    one, two, three = here.registry.endpoints(port, 4)
    here.balancer.set_unhealthy(one, True, 0.0, why="no answer")
    decision = here.decide()
    assert dict(decision.shares) == {two.address: 0.5, three.address: 0.5}
    assert not decision.is_settled
    here.balancer.set_unhealthy(two, True, 0.0, why="no answer")
    assert "too few of its endpoints are healthy" in here.decide().why
    here.balancer.set_unhealthy(one, False, 1.0)
    here.balancer.set_unhealthy(two, False, 1.0)
    assert len(here.decide().shares) == 3
    assert here.decide().is_settled


def test_nobody_healthy_is_refused_where_the_policy_wants_it_so() -> None:
    here = _Node(_traffic({"healthCheck": {"type": "tcp"}, "panicThresholdPercent": 0}))
    port = here.registry.service_at(*_SERVICE)
    assert port is not None
    for each in here.registry.endpoints(port, 4):
        here.balancer.set_unhealthy(each, True, 0.0, why="no answer")
    assert here.shares() == {}


@pytest.mark.parametrize(
    ("of_service", "of_namespace", "is_default", "is_wanted"),
    [
        ("", "", False, False),
        ("", "", True, True),
        ("connect", "", False, True),
        ("", "connect", False, True),
        ("agent", "connect", True, False),
        ("", "agent", True, False),
        ("connect", "agent", False, True),
    ],
)
def test_the_service_says_it_then_its_namespace_then_the_configuration(
    of_service: str, of_namespace: str, *, is_default: bool, is_wanted: bool
) -> None:
    here = _Node(
        replace(service("web", _SERVICE.ip), balance=of_service),
        replace(meshed_namespace(), balance=of_namespace),
        is_default=is_default,
    )
    port = here.registry.service_at(*_SERVICE)
    assert port is not None
    assert here.rules.is_wanted(port) is is_wanted


def test_where_the_kernel_can_not_it_is_said_to_who_asks_for_it() -> None:
    def describe(asked: str, *, is_default: bool) -> tuple[bool, str]:
        here = _Node(replace(service("web", _SERVICE.ip), balance=asked))
        port = here.registry.service_at(*_SERVICE)
        assert port is not None
        config = cast(Config, SimpleNamespace(capture=CaptureSection(connect_balancing=is_default)))
        found = NoneAtConnect("there is no BPF", config=config, registry=here.registry)
        assert bool(list(found.problems())) is is_default
        assert all("connect_balancing = true can not be had: there is no BPF" in each for each in found.problems())
        return found.describe(port)

    assert describe("", is_default=False) == (False, "")
    assert describe("agent", is_default=True) == (False, "")
    assert describe("", is_default=True) == (False, "there is no BPF")
    assert describe("connect", is_default=False) == (False, "there is no BPF")
