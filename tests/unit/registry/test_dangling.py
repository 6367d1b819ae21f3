"""What a TrafficPolicy or a TCPRoute names and nobody has is told, until it is there."""

import pytest

from ca.manifests import ObjectKey, Service, ServicePortSpec, TCPRoute, TrafficPolicy
from ca.manifests.tcp_route import Backend, ParentPort
from ca.manifests.traffic import DEFAULT
from node_agent.registry import Registry, Update


def _service(name: str, *ports: int) -> Service:
    return Service(namespace="shop", name=name, ports=tuple(ServicePortSpec(f"p{port}", port, port) for port in ports))


def _policy(service: str, *, port: int | None = None, kind: str = "Service") -> TrafficPolicy:
    return TrafficPolicy(namespace="shop", name="mine", kind=kind, service=service, port=port, traffic=DEFAULT)


def _route(parent: ParentPort, *backends: Backend) -> TCPRoute:
    return TCPRoute(namespace="shop", name="canary", parents=(parent,), backends=backends)


def _told(*objects: Service | TrafficPolicy | TCPRoute) -> list[str]:
    registry = Registry("example.org")
    registry.apply(Update(upserts=(_service("web", 80, 443), _service("silent"), *objects)))
    return list(registry.faults())


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        (_policy("wbe"), "there is no Service shop/wbe"),
        (_policy("web", port=81), "Service shop/web has no port 81; its ports: 80, 443"),
        (_policy("silent", port=81), "Service shop/silent has no port 81; its ports: none"),
        (_policy("web", kind="ServiceEntry"), "there is no ServiceEntry shop/web"),
    ],
)
def test_a_policy_about_nothing_is_told(policy: TrafficPolicy, why: str) -> None:
    assert _told(policy) == [f"TrafficPolicy shop/mine has no effect: {why}"]


@pytest.mark.parametrize("policy", [_policy("web"), _policy("web", port=443), _policy("silent")])
def test_a_policy_about_something_is_not(policy: TrafficPolicy) -> None:
    assert _told(policy) == []


def test_a_route_from_or_to_nowhere_is_told_but_not_a_backend_without_a_share() -> None:
    good = Backend("web", 80, 9)
    assert _told(_route(ParentPort("web", 80), good, Backend("gone", 80, 0))) == []
    assert _told(_route(ParentPort("wbe", None), good)) == [
        "TCPRoute shop/canary splits nothing: there is no Service shop/wbe"
    ]
    assert _told(_route(ParentPort("web", 8), good, Backend("web-v2", 80, 1), Backend("web", 81, 1))) == [
        "TCPRoute shop/canary splits nothing: Service shop/web has no port 8; its ports: 80, 443",
        "TCPRoute shop/canary has a share of the connections refused: there is no Service shop/web-v2",
        "TCPRoute shop/canary has a share of the connections refused: Service shop/web has no port 81; "
        "its ports: 80, 443",
    ]


def test_it_is_told_no_more_when_the_service_comes_and_again_when_it_goes() -> None:
    registry = Registry("example.org")
    registry.apply(Update(upserts=(_policy("web", port=80),)))
    assert len(list(registry.faults())) == 1
    registry.apply(Update(upserts=(_service("web", 80),)))
    assert list(registry.faults()) == []
    registry.apply(Update(deletes=(ObjectKey("Service", "shop", "web"),)))
    assert len(list(registry.faults())) == 1
