"""Services outside of the mesh: which address is whose, and where a connection may go."""

from dataclasses import replace

from ca.manifests import ExternalEndpoint, ExternalPort, ExternalService, ObjectKey, TrafficPolicy
from ca.manifests.external import EndpointPort
from ca.manifests.traffic import Retry, Traffic
from node_agent.model import ObjectName
from node_agent.registry import Registry, Update
from node_agent.registry.changes import RegistryObject, ResolvedName
from tests.manifest_builder import node, pod, service

API = ExternalService(
    kind="ServiceEntry",
    namespace="shop",
    name="api",
    hosts=("api.example.com",),
    ports=(ExternalPort("tls", 443, 443),),
)
RESOLVED = ResolvedName(name="api.example.com", addresses=("192.0.2.1", "192.0.2.2", "2001:db8::1"))


def _registry(*objects: RegistryObject) -> Registry:
    registry = Registry("example.org")
    registry.apply(Update(upserts=objects))
    return registry


def _goes_to(registry: Registry, ip: str, port: int = 443) -> tuple[str, list[str]] | None:
    place = registry.external_at(ip, port)
    return None if place is None else (str(place.service), [str(each.address) for each in place.endpoints])


def test_a_connection_to_a_resolved_address_may_go_to_all_of_its_family() -> None:
    registry = _registry(API, RESOLVED)
    assert _goes_to(registry, "192.0.2.1") == ("shop/api:443", ["192.0.2.1:443", "192.0.2.2:443"])
    assert _goes_to(registry, "2001:db8::1") == ("shop/api:443", ["[2001:db8::1]:443"])
    assert _goes_to(registry, "192.0.2.1", 80) is None
    assert _goes_to(registry, "192.0.2.3") is None
    place = registry.external_at("192.0.2.1", 443)
    again = registry.external_at("192.0.2.2", 443)
    assert place is not None
    assert again is not None
    assert place.endpoints is again.endpoints is registry.endpoints(place.service, 4), "the balancer knows them again"
    assert all(each.workload is None for each in place.endpoints)


def test_the_order_in_which_entry_and_answer_come_does_not_matter() -> None:
    registry = _registry(RESOLVED)
    assert _goes_to(registry, "192.0.2.1") is None
    registry.apply(Update(upserts=(API,)))
    assert _goes_to(registry, "192.0.2.1") is not None


def test_an_address_of_a_moment_ago_is_still_the_service_but_nothing_goes_there() -> None:
    registry = _registry(API, ResolvedName(name="api.example.com", addresses=("192.0.2.9",), recent=("192.0.2.1",)))
    assert _goes_to(registry, "192.0.2.1") == ("shop/api:443", ["192.0.2.9:443"])
    registry.apply(Update(upserts=(replace(RESOLVED, addresses=("192.0.2.9",)),)))
    assert _goes_to(registry, "192.0.2.1") is None


def test_what_changed_is_told_and_what_is_gone_is_gone() -> None:
    registry = _registry()
    name = ObjectName("shop", "api")
    assert registry.apply(Update(upserts=(API,))).services_changed == {name}
    assert registry.external_names() == {"api.example.com"}
    assert registry.users_of("api.example.com") == ["ServiceEntry shop/api"]
    assert registry.apply(Update(upserts=(RESOLVED,))).services_changed == {name}
    changes = registry.apply(Update(deletes=(API.key,)))
    assert (set(changes.services_changed), set(changes.services_removed)) == (set(), {name})
    assert registry.external_names() == frozenset()
    assert _goes_to(registry, "192.0.2.1") is None
    assert not registry.is_service(name)


def test_a_name_that_is_no_longer_resolved_has_no_addresses() -> None:
    registry = _registry(API, RESOLVED)
    registry.apply(Update(deletes=(ObjectKey("ResolvedName", "", "api.example.com"),)))
    assert _goes_to(registry, "192.0.2.1") is None


def test_virtual_addresses_and_target_ports() -> None:
    entry = replace(
        API,
        addresses=("10.249.0.7",),
        hosts=(),
        endpoints=(ExternalEndpoint("192.0.2.1", (EndpointPort("tls", 8443),)), ExternalEndpoint("192.0.2.2")),
    )
    registry = _registry(entry)
    for ip in ("10.249.0.7", "192.0.2.1", "192.0.2.2"):
        assert _goes_to(registry, ip) == ("shop/api:443", ["192.0.2.1:8443", "192.0.2.2:443"])


def test_endpoints_by_name_are_reached_by_the_hosts_addresses_too() -> None:
    entry = replace(API, endpoints=(ExternalEndpoint("eu.example.com", (EndpointPort("tls", 8443),)),))
    registry = _registry(entry, RESOLVED, ResolvedName(name="eu.example.com", addresses=("198.51.100.1",)))
    for ip in ("192.0.2.1", "198.51.100.1"):
        assert _goes_to(registry, ip) == ("shop/api:443", ["198.51.100.1:8443"])


def test_several_hosts_are_each_on_their_own() -> None:
    entry = replace(API, hosts=("api.example.com", "b.example.com"))
    registry = _registry(entry, RESOLVED, ResolvedName(name="b.example.com", addresses=("198.51.100.1",)))
    assert _goes_to(registry, "192.0.2.1") == ("shop/api:443", ["192.0.2.1:443", "192.0.2.2:443"])
    assert _goes_to(registry, "198.51.100.1") == ("shop/api:443", ["198.51.100.1:443"])
    (port,) = registry.service_ports(ObjectName("shop", "api"))
    assert len(registry.endpoints(port, 4)) == 3


def test_a_contested_address_is_the_oldest_and_leads_only_to_what_all_share() -> None:
    older = replace(API, name="older", hosts=("b.example.com",), created="2026-01-01T00:00:00+00:00")
    younger = replace(API, created="2026-01-02T00:00:00+00:00")
    shared = ResolvedName(name="b.example.com", addresses=("192.0.2.2", "198.51.100.1"))
    for order in ((older, younger), (younger, older)):
        registry = _registry(*order, RESOLVED, shared)
        assert _goes_to(registry, "192.0.2.2") == ("shop/older:443", ["192.0.2.2:443"])
        assert _goes_to(registry, "198.51.100.1") == ("shop/older:443", ["192.0.2.2:443", "198.51.100.1:443"])
        assert registry.conflicts() == (
            "192.0.2.2:443 is claimed by ServiceEntry shop/older and ServiceEntry shop/api; "
            "ServiceEntry shop/older is in force",
        )
        registry.apply(Update(deletes=(older.key,)))
        assert _goes_to(registry, "192.0.2.2") == ("shop/api:443", ["192.0.2.1:443", "192.0.2.2:443"])
        assert registry.conflicts() == ()


def test_a_contested_address_that_is_not_current_leads_to_itself() -> None:
    older = replace(API, name="older", hosts=("b.example.com",))
    registry = _registry(
        API,
        older,
        replace(RESOLVED, addresses=("192.0.2.1",), recent=("192.0.2.9",)),
        ResolvedName(name="b.example.com", addresses=("198.51.100.1",), recent=("192.0.2.9",)),
    )
    assert _goes_to(registry, "192.0.2.9") == ("shop/api:443", ["192.0.2.9:443"])


def test_one_address_may_be_two_services_on_two_ports() -> None:
    other = replace(API, name="other", hosts=("b.example.com",), ports=(ExternalPort("mail", 587, 587),))
    registry = _registry(API, other, RESOLVED, ResolvedName(name="b.example.com", addresses=("192.0.2.1",)))
    assert _goes_to(registry, "192.0.2.1", 587) == ("shop/other:587", ["192.0.2.1:587"])
    assert registry.conflicts() == ()


def test_dns_never_speaks_for_an_address_of_a_pod_network() -> None:
    registry = _registry(node("node-1", "10.1.0.0/24"), API, replace(RESOLVED, addresses=("10.1.0.5", "192.0.2.1")))
    assert _goes_to(registry, "10.1.0.5") is None
    assert _goes_to(registry, "192.0.2.1") is not None


def test_a_virtual_address_that_the_mesh_has_is_without_effect_and_told() -> None:
    entry = replace(API, addresses=("10.1.0.5", "10.248.0.1", "10.249.0.7"))
    registry = _registry(node("node-1", "10.1.0.0/24"), service("web", "10.248.0.1"), entry)
    assert registry.conflicts() == (
        "address 10.1.0.5 of ServiceEntry shop/api is in a pod network, and without effect; give it another",
        "address 10.248.0.1 of ServiceEntry shop/api is a cluster IP, and without effect; give it another",
    )
    assert _goes_to(registry, "10.1.0.5") is None


def test_a_service_and_a_service_entry_may_have_one_name() -> None:
    policy = TrafficPolicy(
        namespace="shop", name="p", kind="ServiceEntry", service="web", traffic=Traffic(retry=Retry(attempts=7))
    )
    registry = _registry(
        service("web", "10.248.0.1"), pod("web-1", "10.1.0.1"), replace(API, name="web"), RESOLVED, policy
    )
    place = registry.external_at("192.0.2.1", 443)
    assert place is not None
    inside = registry.service_at("10.248.0.1", 80)
    assert inside is not None
    assert registry.traffic(place.service).retry.attempts == 7
    assert registry.traffic(inside).retry.attempts is None
    assert len(registry.service_ports(ObjectName("shop", "web"))) == 2


def test_a_policy_for_a_service_is_for_one_of_type_external_name() -> None:
    policy = TrafficPolicy(namespace="shop", name="p", service="api", traffic=Traffic(retry=Retry(attempts=7)))
    registry = _registry(replace(API, kind="Service"), RESOLVED, policy)
    place = registry.external_at("192.0.2.1", 443)
    assert place is not None
    assert registry.traffic(place.service).retry.attempts == 7


def test_a_service_may_change_its_type() -> None:
    registry = _registry(replace(API, kind="Service"), RESOLVED)
    assert _goes_to(registry, "192.0.2.1") is not None
    changes = registry.apply(Update(upserts=(service("api", "10.248.0.1"),)))
    assert (set(changes.services_changed), set(changes.services_removed)) == ({ObjectName("shop", "api")}, set())
    assert _goes_to(registry, "192.0.2.1") is None
    assert registry.service_at("10.248.0.1", 80) is not None
    registry.apply(Update(upserts=(replace(API, kind="Service"),)))
    assert _goes_to(registry, "192.0.2.1") is not None
    assert registry.service_at("10.248.0.1", 80) is None
    assert registry.apply(Update(deletes=(ObjectKey("Service", "shop", "api"),))).services_removed == {
        ObjectName("shop", "api")
    }
    assert _goes_to(registry, "192.0.2.1") is None
