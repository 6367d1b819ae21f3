"""Which TrafficPolicy is in force."""

from dataclasses import replace

from ca.manifests import ObjectKey, Service, ServicePortSpec, Traffic, TrafficPolicy
from ca.manifests.traffic import DEFAULT, Fault, LoadBalancing
from node_agent.model import ObjectName, ServicePort
from node_agent.registry import Registry, Update

WEB = ObjectName("shop", "web")


def _policy(name: str, *, port: int | None = None, created: str = "", panic: int = 50) -> TrafficPolicy:
    traffic = replace(DEFAULT, panic_threshold_percent=panic)
    return TrafficPolicy(namespace="shop", name=name, created=created, service="web", port=port, traffic=traffic)


def _registry(*policies: TrafficPolicy, load_balancing: str = "least-latency") -> Registry:
    registry = Registry("example.org")
    ports = (ServicePortSpec("http", 80, 8080), ServicePortSpec("admin", 81, 8081))
    service = Service(namespace="shop", name="web", ports=ports, load_balancing=load_balancing)
    registry.apply(Update(upserts=(service, *policies)))
    return registry


def _in_force(registry: Registry) -> dict[int, Traffic]:
    return {port.port: registry.traffic(port) for port in registry.service_ports(WEB)}


def test_without_a_policy_the_defaults_are_in_force() -> None:
    assert _in_force(_registry()) == {80: DEFAULT, 81: DEFAULT}
    by_annotation = _in_force(_registry(load_balancing="round-robin"))
    assert by_annotation[80].balancing.policy is LoadBalancing.ROUND_ROBIN


def test_one_that_names_the_port_wins_over_one_that_does_not() -> None:
    registry = _registry(_policy("wide", panic=1, created="2020"), _policy("narrow", port=81, panic=2, created="2021"))
    assert {port: each.panic_threshold_percent for port, each in _in_force(registry).items()} == {80: 1, 81: 2}
    assert registry.conflicts() == ()


def test_of_two_the_oldest_is_in_force_and_the_other_is_reported() -> None:
    registry = _registry(_policy("a", panic=1, created="2021"), _policy("b", panic=2, created="2020"))
    assert _in_force(registry)[80].panic_threshold_percent == 2
    assert registry.conflicts() == ("TrafficPolicies b and a are both about service shop/web; b is in force",)


def test_a_change_is_a_change_of_the_service_and_the_value_stays_the_same_until_then() -> None:
    registry = _registry(_policy("a", panic=1))
    port = ServicePort(service=WEB, port=80)
    assert registry.traffic(port) is registry.traffic(port)
    changes = registry.apply(Update(upserts=(_policy("a", panic=7),)))
    assert changes.services_changed == {WEB}
    assert registry.traffic(port).panic_threshold_percent == 7
    changes = registry.apply(Update(deletes=(ObjectKey("TrafficPolicy", "shop", "a"),)))
    assert changes.services_changed == {WEB}
    assert registry.traffic(port) is DEFAULT
    assert registry.traffic_policy(port) is None


def test_faults_are_told_of_the_policies_that_inject_some_into_a_service_that_is_there() -> None:
    def disturbing(name: str, percent: float, *, port: int | None = None, service: str = "web") -> TrafficPolicy:
        traffic = replace(DEFAULT, faults=(Fault(percent=percent, refuse=True),))
        return replace(_policy(name, port=port), traffic=traffic, service=service)

    registry = _registry(
        disturbing("a", 1.0),
        disturbing("b", 1.0),  # not in force
        disturbing("c", 0.5, port=81),
        disturbing("d", 100.0, service="nobody"),
    )
    assert sorted(each for each in registry.faults() if "faults" in each) == [
        "faults are injected into connections to shop/web (TrafficPolicy shop/a)",
        "faults are injected into connections to shop/web:81 (TrafficPolicy shop/c)",
    ]
    assert list(_registry(disturbing("a", 0.0)).faults()) == []


def test_a_policy_that_moves_to_another_service_leaves_the_first() -> None:
    registry = _registry(_policy("a", panic=1))
    registry.apply(Update(upserts=(replace(_policy("a", panic=1), service="other"),)))
    assert _in_force(registry)[80] is DEFAULT


def test_what_is_in_force_does_not_depend_on_the_order_of_arrival() -> None:
    policies = [
        _policy("wide", panic=1, created="2020"),
        _policy("narrow", port=81, panic=2, created="2021"),
        _policy("late", panic=3, created="2022"),
    ]
    at_once = _registry(*policies)
    one_by_one = _registry()
    for each in reversed(policies):
        one_by_one.apply(Update(upserts=(each,)))
    assert _in_force(one_by_one) == _in_force(at_once)
    assert one_by_one.conflicts() == at_once.conflicts() != ()


def test_a_policy_that_leaves_makes_room_for_the_next_and_its_conflict_is_gone() -> None:
    registry = _registry(_policy("old", panic=1, created="2020"), _policy("new", panic=2, created="2021"))
    registry.apply(Update(deletes=(ObjectKey("TrafficPolicy", "shop", "old"),)))
    assert _in_force(registry)[80].panic_threshold_percent == 2
    assert registry.conflicts() == ()
