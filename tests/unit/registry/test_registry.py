"""The registry's answers, and what each update is told to have changed."""

import pytest

from ca.manifests import ContainerPort, ManifestObject, Node, ObjectKey, ServicePortSpec, SliceEndpoint, SlicePort
from node_agent.model import Endpoint, EndpointAddress, Locality, MtlsMode, ObjectName, ServicePort, Workload
from node_agent.registry import Changes, Registry, Update
from tests.manifest_builder import (
    endpoint_slice,
    meshed_namespace,
    namespace,
    node,
    peer_authentication,
    pod,
    service,
)

WEB = ObjectName("shop", "web")


class Store:
    """A registry with shorter questions."""

    def __init__(self, *objects: ManifestObject) -> None:
        self.registry = Registry("example.org")
        self.put(*objects)

    def put(self, *objects: ManifestObject) -> Changes:
        return self.registry.apply(Update(upserts=objects))

    def delete(self, *objects: ManifestObject) -> Changes:
        return self.registry.apply(Update(deletes=tuple(each.key for each in objects)))

    def workload(self, ip: str) -> Workload:
        found = self.registry.workload_at(ip)
        assert found is not None
        return found

    def port(self, name: ObjectName = WEB) -> ServicePort:
        return self.registry.service_ports(name)[0]

    def endpoints(self, ip_version: int = 4, name: ObjectName = WEB) -> list[tuple[str, int, bool]]:
        found = self.registry.endpoints(self.port(name), ip_version)
        return [(each.address.ip, each.address.port, each.ready) for each in found]


def names(workloads: tuple[Workload, ...]) -> list[str]:
    return [each.name.name for each in workloads]


def test_a_pod_is_a_workload_by_each_of_its_addresses_and_by_name() -> None:
    store = Store(node("node-1", **{"topology.kubernetes.io/zone": "a"}), meshed_namespace())
    changes = store.put(pod("a", "10.1.0.1", "fd00::1", service_account="cart"))
    workload = store.workload("10.1.0.1")
    assert store.workload("fd00::1") is workload
    assert store.registry.workload_named(ObjectName("shop", "a")) is workload
    assert store.registry.workloads_on("node-1") == (workload,)
    assert str(workload.identity) == "spiffe://example.org/ns/shop/sa/cart"
    assert (workload.enrolled, workload.ready, workload.locality) == (True, True, Locality(zone="a"))
    assert workload.named_ports == {"http": 8080}
    assert changes.workloads_added == (workload,)
    assert changes.revision == store.registry.revision == 2


def test_a_pod_without_an_address_is_no_workload_yet() -> None:
    store = Store()
    assert not store.put(pod("a"))
    assert names(store.put(pod("a", "10.1.0.1")).workloads_added) == ["a"]


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_finished_pod_is_gone_and_its_address_free(phase: str) -> None:
    store = Store(pod("a", "10.1.0.1"), pod("b", "10.1.0.2"))
    changes = store.put(pod("a", "10.1.0.1", phase=phase))
    assert names(changes.workloads_removed) == ["a"]
    assert store.registry.workload_at("10.1.0.1") is None
    assert names(store.put(pod("b", "10.1.0.1")).workloads_added) == ["b"]
    assert store.registry.conflicts() == ()


def test_a_pod_made_again_with_its_address_and_another_identity_is_removed_and_added() -> None:
    store = Store(pod("a", "10.1.0.1", uid="1", service_account="cart"))
    changes = store.put(pod("a", "10.1.0.1", uid="2", service_account="web"))
    assert [each.uid for each in changes.workloads_removed] == ["1"]
    assert [each.uid for each in changes.workloads_added] == ["2"]
    assert changes.workloads_changed == ()
    assert store.workload("10.1.0.1").uid == "2"


@pytest.mark.parametrize(
    "other", [{"node_name": "node-2"}, {"service_account": "x"}, {"labels": {"ringfence.io/mesh": "enabled"}}]
)
def test_a_change_that_capture_must_act_on_is_removed_and_added(other: dict[str, object]) -> None:
    store = Store(pod("a", "10.1.0.1"))
    changes = store.put(pod("a", "10.1.0.1", **other))
    assert len(changes.workloads_removed) == len(changes.workloads_added) == 1


def test_readiness_alone_is_a_change_of_the_workload_and_its_services() -> None:
    store = Store(service(), service("other", selector={"app": "other"}), pod("a", "10.1.0.1"))
    changes = store.put(pod("a", "10.1.0.1", ready=False))
    assert names(changes.workloads_changed) == ["a"]
    assert (changes.workloads_added, changes.workloads_removed) == ((), ())
    assert changes.services_changed == {WEB}
    assert not store.put(pod("a", "10.1.0.1", ready=False)), "the same again changes nothing"


def test_the_namespace_label_enrols_and_its_removal_releases() -> None:
    store = Store(namespace(), pod("a", "10.1.0.1"), pod("b", "10.1.0.2", namespace="other"))
    assert not store.workload("10.1.0.1").enrolled
    changes = store.put(meshed_namespace())
    assert names(changes.workloads_added) == ["a"]
    assert changes.workloads_gone() == [], "it entered the mesh, it is still there"
    assert store.workload("10.1.0.1").enrolled
    assert not store.workload("10.1.0.2").enrolled
    store.delete(meshed_namespace())
    assert not store.workload("10.1.0.1").enrolled


def test_a_node_that_is_known_late_gives_its_workloads_their_locality() -> None:
    store = Store(pod("a", "10.1.0.1"))
    changes = store.put(node("node-1", **{"topology.kubernetes.io/region": "eu"}))
    assert [each.locality for each in changes.workloads_changed] == [Locality(region="eu")]


def test_pods_on_the_nodes_network_are_known_by_name_but_not_by_address() -> None:
    store = Store(meshed_namespace(), service(), pod("a", "192.168.0.1", host_network=True))
    assert store.registry.workload_at("192.168.0.1") is None
    (endpoint,) = store.registry.endpoints(store.port(), 4)
    assert endpoint.workload is not None
    assert not endpoint.workload.enrolled


def test_the_newest_of_two_pods_with_one_address_holds_it_whatever_the_order() -> None:
    old = pod("a", "10.1.0.1", created="2024-01-01T00:00:00+00:00")
    new = pod("b", "10.1.0.1", created="2024-01-02T00:00:00+00:00")
    for order in ((old, new), (new, old)):
        store = Store(service(), *order)
        assert store.workload("10.1.0.1").name.name == "b"
        assert [each.workload for each in store.registry.endpoints(store.port(), 4)] == [store.workload("10.1.0.1")]
        (conflict,) = store.registry.conflicts()
        assert conflict == "address 10.1.0.1 is claimed by pods shop/b and shop/a; shop/b is in force"
        changes = store.delete(new)
        assert changes.services_changed == {WEB}
        assert store.workload("10.1.0.1").name.name == "a"
        assert store.endpoints() == [("10.1.0.1", 8080, True)]
        assert store.registry.conflicts() == ()


def test_a_terminating_pod_loses_its_address_to_an_older_one() -> None:
    store = Store(pod("a", "10.1.0.1", created="2024"), pod("b", "10.1.0.1", created="2025", terminating=True))
    assert store.workload("10.1.0.1").name.name == "a"


def test_a_service_is_found_by_cluster_ip_and_port() -> None:
    store = Store(service("web", "10.96.0.1", "fd00:96::1"))
    found = store.registry.service_at("10.96.0.1", 80)
    assert found == ServicePort(service=WEB, port=80)
    assert store.registry.service_at("fd00:96::1", 80) is found
    assert store.registry.service_at("10.96.0.1", 81) is None
    assert store.registry.is_service_ip("10.96.0.1")
    assert not store.registry.is_service_ip("10.96.0.2")
    assert store.delete(service()).services_removed == {WEB}
    assert not store.registry.is_service_ip("10.96.0.1")
    assert found is not None
    assert store.registry.endpoints(found, 4) == ()


def test_a_cluster_ip_that_changes_is_not_left_behind() -> None:
    store = Store(service("web", "10.96.0.1"))
    store.put(service("web", "10.96.0.2"))
    assert not store.registry.is_service_ip("10.96.0.1")
    assert store.registry.is_service_ip("10.96.0.2")


def test_the_oldest_of_two_services_with_one_cluster_ip_holds_it() -> None:
    first, second = service("b", "10.96.0.1", created="2024"), service("a", "10.96.0.1", created="2025")
    store = Store(second, first)
    found = store.registry.service_at("10.96.0.1", 80)
    assert found is not None
    assert found.service.name == "b"
    assert "cluster IP 10.96.0.1 is claimed by services shop/b and shop/a" in store.registry.conflicts()[0]
    store.delete(first)
    found = store.registry.service_at("10.96.0.1", 80)
    assert found is not None
    assert found.service.name == "a"


def test_selected_pods_are_endpoints_by_family_and_readiness() -> None:
    store = Store(
        service(),
        pod("a", "10.1.0.1", "fd00::1"),
        pod("b", "10.1.0.2", ready=False),
        pod("c", "fd00::3"),
        pod("d", "10.1.0.4", terminating=True),
        pod("e", "10.1.0.5", labels={"app": "other"}),
        pod("f", "10.1.0.6", namespace="other"),
        pod("g", "10.1.0.7", phase="Succeeded"),
    )
    assert store.endpoints(4) == [("10.1.0.1", 8080, True), ("10.1.0.2", 8080, False), ("10.1.0.4", 8080, False)]
    assert store.endpoints(6) == [("fd00::1", 8080, True), ("fd00::3", 8080, True)]


def test_a_named_target_port_is_each_pods_own() -> None:
    store = Store(
        service(),
        pod("a", "10.1.0.1", ports=(ContainerPort("http", 8080),)),
        pod("b", "10.1.0.2", ports=(ContainerPort("http", 9090),)),
        pod("c", "10.1.0.3", ports=(ContainerPort("admin", 9090),)),
    )
    assert store.endpoints() == [("10.1.0.1", 8080, True), ("10.1.0.2", 9090, True)]


def test_addresses_that_are_not_ready_may_be_published_as_ready() -> None:
    store = Store(service(publish_not_ready=True), pod("a", "10.1.0.1", ready=False))
    assert store.endpoints() == [("10.1.0.1", 8080, True)]


def test_endpoints_are_the_same_tuple_until_something_in_them_changes() -> None:
    store = Store(service(), service("other", selector={"app": "other"}), pod("a", "10.1.0.1"))
    before = store.registry.endpoints(store.port(), 4)
    store.put(pod("z", "10.1.0.9", labels={"app": "other"}), namespace("elsewhere"))
    assert store.registry.endpoints(store.port(), 4) is before
    store.put(pod("b", "10.1.0.2"))
    assert store.endpoints() == [("10.1.0.1", 8080, True), ("10.1.0.2", 8080, True)]


def test_labels_and_selectors_that_change_move_pods_between_services() -> None:
    other = ObjectName("shop", "other")
    store = Store(service(), service("other", selector={"app": "other"}), pod("a", "10.1.0.1"))
    changes = store.put(pod("a", "10.1.0.1", labels={"app": "other"}))
    assert changes.services_changed == {WEB, other}
    assert (store.endpoints(), store.endpoints(name=other)) == ([], [("10.1.0.1", 8080, True)])
    store.put(service(selector={"app": "other"}))
    assert store.endpoints() == [("10.1.0.1", 8080, True)]
    store.put(service(selector={}))
    assert store.endpoints() == []


def test_slices_take_the_place_of_the_selector() -> None:
    store = Store(service(), pod("a", "10.1.0.1"), pod("b", "10.1.0.2"))
    part = endpoint_slice("web-1", SliceEndpoint("10.1.0.1", False, "a"), SliceEndpoint("192.0.2.1"))
    assert store.put(part).services_changed == {WEB}
    assert store.registry.endpoints(store.port(), 4) == (
        Endpoint(address=EndpointAddress("10.1.0.1", 8080), workload=store.workload("10.1.0.1"), ready=False),
        Endpoint(address=EndpointAddress("192.0.2.1", 8080), workload=None),
    )
    assert store.delete(part).services_changed == {WEB}
    assert store.endpoints() == [("10.1.0.1", 8080, True), ("10.1.0.2", 8080, True)]


def test_several_slices_are_one_service_without_doubles() -> None:
    store = Store(
        service(ports=(ServicePortSpec("http", 80, 8080),)),
        endpoint_slice("web-2", SliceEndpoint("10.1.0.1"), SliceEndpoint("10.1.0.2"), ports=(SlicePort("http", 8080),)),
        endpoint_slice("web-1", SliceEndpoint("10.1.0.1", False), ports=(SlicePort("http", 8080),)),
        endpoint_slice("web-3", SliceEndpoint("10.1.0.3"), ports=(SlicePort("admin", 9090),)),
        endpoint_slice("web-6", SliceEndpoint("fd00::1"), ports=(SlicePort("http", 8080),), ip_version=6),
    )
    assert store.endpoints(4) == [("10.1.0.1", 8080, True), ("10.1.0.2", 8080, True)]
    assert store.endpoints(6) == [("fd00::1", 8080, True)]


def test_a_pod_that_is_known_after_its_slice_becomes_the_endpoints_workload() -> None:
    store = Store(service(), endpoint_slice("web-1", SliceEndpoint("10.1.0.1", True, "a")))
    assert [each.workload for each in store.registry.endpoints(store.port(), 4)] == [None]
    changes = store.put(pod("a", "10.1.0.1"))
    assert changes.services_changed == {WEB}
    assert [each.workload for each in store.registry.endpoints(store.port(), 4)] == [store.workload("10.1.0.1")]


def test_a_slice_that_lags_behind_does_not_lead_to_the_pod_that_took_the_address() -> None:
    store = Store(service(), pod("a", "10.1.0.1"), endpoint_slice("web-1", SliceEndpoint("10.1.0.1", True, "a")))
    assert len(store.endpoints()) == 1
    store.delete(pod("a"))
    assert [each.workload for each in store.registry.endpoints(store.port(), 4)] == [None]
    store.put(pod("b", "10.1.0.1"))
    assert store.endpoints() == []
    store.delete(pod("b"))
    store.put(pod("a", "10.1.0.2"))
    assert store.endpoints() == [], "the pod of that name has another address by now"


def test_a_slice_that_moves_to_another_service_leaves_the_first() -> None:
    other = ObjectName("shop", "other")
    store = Store(service(), service("other", selector={}), endpoint_slice("s", SliceEndpoint("10.1.0.1")))
    assert store.put(endpoint_slice("s", SliceEndpoint("10.1.0.1"), service="other")).services_changed == {WEB, other}
    assert (store.endpoints(), store.endpoints(name=other)) == ([], [("10.1.0.1", 8080, True)])


def test_pod_networks_are_the_union_of_the_nodes() -> None:
    store = Store(node("node-1", "10.1.0.0/24", "fd00:1::/64"), node("node-2", "10.2.0.0/16"))
    inside = ["10.1.0.1", "10.1.0.255", "10.2.255.1", "fd00:1::5"]
    assert [ip for ip in [*inside, "10.1.1.1", "fd00:2::5", "192.0.2.1"] if store.registry.in_pod_network(ip)] == inside
    store.delete(node("node-1"))
    assert not store.registry.in_pod_network("10.1.0.1")
    store.put(node("node-2"))
    assert not store.registry.in_pod_network("10.2.0.1")


def test_a_key_both_deleted_and_upserted_is_upserted() -> None:
    store = Store(pod("a", "10.1.0.1"))
    changes = store.registry.apply(
        Update(upserts=(pod("a", "10.1.0.2"),), deletes=(ObjectKey("Pod", "shop", "a"), ObjectKey("Pod", "x", "y")))
    )
    assert len(changes.workloads_removed) == len(changes.workloads_added) == 1
    assert store.workload("10.1.0.2").name.name == "a"


WIDE = {"namespace": "istio-system"}
NARROW = {"selector": {"app": "web"}}


@pytest.mark.parametrize(
    ("policies", "expected"),
    [
        ([], MtlsMode.PERMISSIVE),
        ([peer_authentication("mesh", "STRICT", **WIDE)], MtlsMode.STRICT),
        ([peer_authentication("mesh", "STRICT", **WIDE, **NARROW)], MtlsMode.PERMISSIVE),
        ([peer_authentication("mesh", "STRICT", **WIDE), peer_authentication("ns", "DISABLE")], MtlsMode.DISABLE),
        ([peer_authentication("mesh", "STRICT", **WIDE), peer_authentication("ns", None)], MtlsMode.STRICT),
        ([peer_authentication("ns", "STRICT", namespace="other")], MtlsMode.PERMISSIVE),
        ([peer_authentication("ns", "PERMISSIVE"), peer_authentication("one", "STRICT", **NARROW)], MtlsMode.STRICT),
        ([peer_authentication("ns", "STRICT"), peer_authentication("one", None, **NARROW)], MtlsMode.STRICT),
        ([peer_authentication("one", "STRICT", selector={"app": "other"})], MtlsMode.PERMISSIVE),
        (
            [
                peer_authentication("a", "STRICT", created="2025"),
                peer_authentication("b", "PERMISSIVE", created="2024"),
            ],
            MtlsMode.PERMISSIVE,
        ),
        ([peer_authentication("one", "STRICT", **NARROW, port_modes={8080: "DISABLE"})], MtlsMode.DISABLE),
        ([peer_authentication("one", "STRICT", **NARROW, port_modes={9090: "DISABLE"})], MtlsMode.STRICT),
        (
            [
                peer_authentication("mesh", "STRICT", **WIDE),
                peer_authentication("one", None, **NARROW, port_modes={8080: None}),
            ],
            MtlsMode.STRICT,
        ),
    ],
)
def test_the_narrower_peer_authentication_counts(policies: list[ManifestObject], expected: MtlsMode) -> None:
    store = Store(pod("a", "10.1.0.1"))
    workload = store.workload("10.1.0.1")
    assert store.registry.mtls_mode(workload, 8080) is MtlsMode.PERMISSIVE
    if policies:
        assert store.put(*policies).mtls_changed
    assert store.registry.mtls_mode(workload, 8080) is expected
    store.delete(*policies)
    assert store.registry.mtls_mode(workload, 8080) is MtlsMode.PERMISSIVE


def test_a_pod_is_of_the_trust_domain_of_its_node() -> None:
    store = Store(meshed_namespace(), node("node-1"), Node(name="node-2", trust_domain="other.example"))
    store.put(pod("a", "10.1.0.1"), pod("b", "10.1.0.2", node_name="node-2"))
    assert store.workload("10.1.0.1").identity.trust_domain == "example.org"
    assert store.workload("10.1.0.2").identity.trust_domain == "other.example"


def test_a_node_that_changes_its_trust_domain_makes_other_workloads_of_its_pods() -> None:
    store = Store(meshed_namespace(), pod("a", "10.1.0.1"), pod("b", "10.1.0.2", node_name="node-2"))
    theirs = Node(name="node-1", trust_domain="other.example")
    changes = store.put(theirs)
    assert (names(changes.workloads_removed), names(changes.workloads_added)) == (["a"], ["a"])
    assert names(tuple(changes.workloads_gone())) == ["a"], "its connections are cut"
    assert str(store.workload("10.1.0.1").identity).startswith("spiffe://other.example/")
    changes = store.delete(theirs)
    assert names(changes.workloads_added) == ["a"]
    assert store.workload("10.1.0.1").identity.trust_domain == "example.org"


def test_a_node_that_names_our_own_trust_domain_changes_nothing() -> None:
    store = Store(meshed_namespace(), pod("a", "10.1.0.1"))
    changes = store.put(Node(name="node-1", trust_domain="example.org"))
    assert (changes.workloads_removed, changes.workloads_added) == ((), ())
