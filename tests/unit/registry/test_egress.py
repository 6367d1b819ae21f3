"""Places outside through egress pods: whose, when there are none, and which addresses they may be asked for."""

from dataclasses import replace
from typing import Any

import pytest

from ca.manifests import ExternalEndpoint, ExternalPort, ExternalService, Namespace, ObjectKey, Pod
from node_agent.model import EndpointAddress, ObjectName, ServicePort
from node_agent.registry import Registry, Update
from node_agent.registry.changes import RegistryObject, ResolvedName
from tests.manifest_builder import meshed_namespace, node, pod

BANK = ExternalService(
    kind="ServiceEntry",
    namespace="shop",
    name="bank",
    created="2026-01-02",
    hosts=("bank.example",),
    ports=(ExternalPort("tls", 443, 8443),),
    egress_nodes=("node-7",),
)
RESOLVED = ResolvedName(name="bank.example", addresses=("192.0.2.1", "2001:db8::1"), recent=("192.0.2.9",))
NODES = (node("node-1", "10.247.1.0/24"), node("node-7", "10.247.7.0/24"))
BANK_PORT = ServicePort(service=ObjectName("shop", "bank"), port=443, name="tls", kind="ServiceEntry", is_external=True)


def _egress(name: str = "egress-1", *addresses: str, **fields: Any) -> Pod:
    values: dict[str, Any] = {"node_name": "node-7", "labels": {"ringfence.io/egress": "true"}}
    return pod(name, *(addresses or ("10.247.7.2", "fd00::7:2")), **(values | fields))


def _registry(*objects: RegistryObject) -> Registry:
    registry = Registry("example.org")
    registry.apply(Update(upserts=(*NODES, meshed_namespace(), RESOLVED, *objects)))
    return registry


def _ways(registry: Registry, ip: str = "192.0.2.1", port: int = 443) -> list[tuple[str, str | None, bool]]:
    place = registry.external_at(ip, port)
    assert place is not None
    return [(str(each.address), each.egress.name.name if each.egress else None, each.ready) for each in place.endpoints]


def test_an_endpoint_is_an_address_and_an_egress_pod_that_has_the_ip_version() -> None:
    registry = _registry(BANK, _egress(), _egress("egress-2", "10.247.7.3", ready=False))
    assert _ways(registry) == [("192.0.2.1:8443", "egress-1", True), ("192.0.2.1:8443", "egress-2", False)]
    assert _ways(registry, "2001:db8::1") == [("[2001:db8::1]:8443", "egress-1", True)]
    place = registry.external_at("192.0.2.1", 443)
    assert place is not None
    registry.apply(Update(upserts=(pod("other", "10.247.1.9"),)))
    assert registry.endpoints(place.service, 4) is place.endpoints, "the balancer knows them again"
    assert len({each.key for each in place.endpoints}) == 2


@pytest.mark.parametrize(
    ("pods", "why"),
    [
        ((), "where no pod of namespace shop has the label ringfence.io/egress=true"),
        ((_egress(labels={}),), "where no pod of namespace shop has the label"),
        ((_egress(node_name="node-1"),), "where no pod of namespace shop has the label"),
        ((_egress(ready=False),), "whose egress pods are not ready"),
        (
            (_egress(labels={"ringfence.io/egress": "true", "ringfence.io/mesh": "disabled"}),),
            "whose egress pods are not in the mesh",
        ),
        (
            (_egress(namespace="evil"), meshed_namespace("evil")),
            "whose egress pods (evil/egress-1) are of other namesp",
        ),
    ],
)
def test_without_an_egress_there_is_no_way_and_status_says_why(pods: tuple[RegistryObject, ...], why: str) -> None:
    registry = _registry(BANK, *pods)
    assert not any(is_ready for _, _, is_ready in _ways(registry))
    (problem,) = registry.egress_problems()
    assert why in problem
    assert problem.endswith("; its connections are refused")


def test_a_node_that_does_not_exist_is_told() -> None:
    registry = _registry(replace(BANK, egress_nodes=("node-8",)), _egress(node_name="node-8"))
    registry.apply(Update(deletes=(_egress().key,)))
    assert _ways(registry) == []
    assert list(registry.egress_problems()) == [
        "ServiceEntry shop/bank leaves through node node-8, which does not exist; "
        "its connections are refused until it does"
    ]
    registry = _registry(replace(BANK, egress_nodes=("node-8", "node-7")), _egress())
    assert len(_ways(registry)) == 1
    assert "there is no node node-8" in next(registry.egress_problems())


def test_the_place_says_it_or_its_namespace_or_the_mesh() -> None:
    silent = replace(BANK, egress_nodes=None)
    mesh = Namespace(name="istio-system", egress_nodes=("node-1",))
    shop = replace(meshed_namespace(), egress_nodes=("node-7",))
    registry = _registry(silent)
    assert registry.egress_nodes(silent) == ()
    assert _ways(registry) == [("192.0.2.1:8443", None, True)]
    registry.apply(Update(upserts=(mesh,)))
    assert registry.egress_nodes(silent) == ("node-1",)
    assert _ways(registry) == []
    changes = registry.apply(Update(upserts=(shop, _egress())))
    assert ObjectName("shop", "bank") in changes.services_changed
    assert registry.egress_nodes(silent) == ("node-7",)
    assert _ways(registry) == [("192.0.2.1:8443", "egress-1", True)]
    directly = replace(BANK, egress_nodes=())
    registry.apply(Update(upserts=(directly,)))
    assert _ways(registry) == [("192.0.2.1:8443", None, True)]
    registry.apply(Update(upserts=(silent,), deletes=(mesh.key, ObjectKey("Namespace", "", "shop"))))
    assert _ways(registry) == [("192.0.2.1:8443", None, True)], "nobody says anything any more"


def test_a_namespace_with_the_label_serves_all() -> None:
    everybody = replace(
        meshed_namespace("edge"), labels={"ringfence.io/mesh": "enabled", "ringfence.io/egress": "true"}
    )
    registry = _registry(BANK, everybody, _egress(namespace="edge"))
    assert _ways(registry) == [("192.0.2.1:8443", "egress-1", True)]
    assert list(registry.egress_problems()) == []
    registry.apply(Update(upserts=(meshed_namespace("edge"),)))
    assert _ways(registry) == []


def test_an_address_of_several_services_leaves_through_the_egress_of_one_however_old_the_others_are() -> None:
    older = replace(BANK, name="older", created="2020-01-01", hosts=("cdn.example",), egress_nodes=())
    cdn = ResolvedName(name="cdn.example", addresses=("192.0.2.1", "192.0.2.5"))
    for objects in ((BANK, older, cdn, _egress()), (_egress(), cdn, older, BANK)):
        registry = _registry()
        for each in objects:
            registry.apply(Update(upserts=(each,)))
        assert _ways(registry) == [("192.0.2.1:8443", "egress-1", True)]
        assert _ways(registry, "192.0.2.9") == [("192.0.2.1:8443", "egress-1", True)]
        registry.apply(Update(deletes=(_egress().key,)))
        assert _ways(registry) == [], "not directly"


def test_an_egress_is_asked_for_addresses_that_its_own_registry_has_and_no_others() -> None:
    mesh_address = ResolvedName(name="bank.example", addresses=("192.0.2.1", "10.247.1.5"), recent=("192.0.2.9",))
    registry = _registry(BANK, _egress(), _egress("other", "10.247.7.9", namespace="evil"), meshed_namespace("evil"))
    registry.apply(Update(upserts=(mesh_address,)))
    port = registry.external_port("ServiceEntry", ObjectName("shop", "bank"), 443)
    assert port == BANK_PORT
    assert registry.external_port("Service", ObjectName("shop", "bank"), 443) is None
    assert registry.external_port("ServiceEntry", ObjectName("shop", "bank"), 80) is None
    for ip, number, is_allowed in (
        ("192.0.2.1", 8443, True),
        ("192.0.2.9", 8443, True),
        ("192.0.2.1", 443, True),  # what an application asks for where several services share the address
        ("192.0.2.1", 22, False),
        ("192.0.2.2", 8443, False),
        ("10.247.1.5", 8443, False),  # a pod's
    ):
        assert registry.is_address_of(port, EndpointAddress(ip, number)) == is_allowed, (ip, number)
    by_name = {each.name: each for each in registry.workloads()}
    assert registry.is_egress_for(by_name[ObjectName("shop", "egress-1")], port)
    assert not registry.is_egress_for(by_name[ObjectName("evil", "other")], port)


def test_virtual_addresses_are_never_asked_for() -> None:
    virtual = replace(BANK, addresses=("10.249.0.7",), endpoints=(ExternalEndpoint("192.0.2.1"),), hosts=())
    registry = _registry(virtual, _egress())
    assert _ways(registry, "10.249.0.7") == [("192.0.2.1:8443", "egress-1", True)]
    assert not registry.is_address_of(BANK_PORT, EndpointAddress("10.249.0.7", 443))
    assert registry.is_address_of(BANK_PORT, EndpointAddress("192.0.2.1", 8443))
