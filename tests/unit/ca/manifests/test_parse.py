"""What is read from a manifest, and what is skipped."""

import json
from typing import Any

import pytest

from ca.manifests import (
    ContainerPort,
    EndpointSlice,
    ManifestError,
    Namespace,
    Node,
    PeerAuthentication,
    Pod,
    Service,
    ServicePortSpec,
    SliceEndpoint,
    SlicePort,
    enrolled,
    parse_manifests,
)
from tests.manifest_texts import POD, SERVICE, only, refusal


def test_a_pod_as_the_api_server_writes_it() -> None:
    assert only(POD) == Pod(
        namespace="shop",
        name="web-6d4b75cb6d-x8zvq",
        uid="0d2a7c8e-7c31-4b6e-9a65-d4c1e1b2f001",
        labels={"app": "web", "pod-template-hash": "6d4b75cb6d", "ringfence.io/mesh": "enabled"},
        created="2024-05-01T12:00:00+00:00",
        node_name="node-1",
        service_account="web",
        ports=(ContainerPort("http", 8080), ContainerPort("", 9090)),
        phase="Running",
        addresses=("10.1.2.3", "fd00::3"),
        ready=True,
    )


def test_the_least_pod_that_can_be_written_by_hand() -> None:
    found = only("{apiVersion: v1, kind: Pod, metadata: {name: a}, status: {podIP: 10.1.2.3}}")
    assert isinstance(found, Pod)
    assert (found.namespace, found.service_account, found.phase, found.ready) == ("default", "default", "Running", True)
    assert found.uid.startswith("derived-")


def test_a_derived_uid_differs_with_the_address_and_the_account() -> None:
    def uid(ip: str, account: str) -> str:
        found = only(
            "{apiVersion: v1, kind: Pod, metadata: {name: a}, "
            f"spec: {{serviceAccountName: {account}}}, status: {{podIP: {ip}}}}}"
        )
        assert isinstance(found, Pod)
        return found.uid

    assert uid("10.1.2.3", "web") == uid("10.1.2.3", "web")
    assert len({uid("10.1.2.3", "web"), uid("10.1.2.4", "web"), uid("10.1.2.3", "cart")}) == 3


@pytest.mark.parametrize(
    ("status", "ready"),
    [
        ("{phase: Running}", True),
        ("{phase: Pending}", False),
        ('{phase: Running, conditions: [{type: Ready, status: "False"}]}', False),
        ('{phase: Running, conditions: [{type: Ready, status: "Unknown"}]}', False),
        ('{phase: Running, conditions: [{type: Initialized, status: "False"}]}', True),
        ("{}", False),
    ],
)
def test_readiness_of_a_pod(status: str, ready: bool) -> None:
    found = only(f"{{apiVersion: v1, kind: Pod, metadata: {{name: a}}, status: {status}}}")
    assert isinstance(found, Pod)
    assert found.ready is ready


def test_a_service_keeps_its_tcp_ports_and_both_families() -> None:
    assert only(SERVICE) == Service(
        namespace="shop",
        name="web",
        cluster_ips=("10.96.0.1", "fd00:96::1"),
        ports=(ServicePortSpec("http", 80, "http"), ServicePortSpec("admin", 9090, 9090)),
        selector={"app": "web"},
        load_balancing="round-robin",
    )


def test_a_headless_service_has_no_cluster_ip() -> None:
    found = only(
        SERVICE.replace("clusterIP: 10.96.0.1", "clusterIP: None").replace('[10.96.0.1, "fd00:96::1"]', '["None"]')
    )
    assert isinstance(found, Service)
    assert found.cluster_ips == ()


def test_an_endpoint_slice() -> None:
    text = """\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-abc12, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}, {name: dns, port: 53, protocol: UDP}, {name: all}]
endpoints:
- {addresses: [10.1.2.3], conditions: {ready: true}, nodeName: node-1, targetRef: {kind: Pod, name: web-1}, zone: a}
- {addresses: [10.1.2.4, 10.1.2.5], conditions: {ready: false, serving: true, terminating: true}}
- {addresses: [192.0.2.1], conditions: {ready: null}}
"""
    assert only(text) == EndpointSlice(
        namespace="shop",
        name="web-abc12",
        service="web",
        ip_version=4,
        endpoints=(
            SliceEndpoint("10.1.2.3", True, "web-1"),
            SliceEndpoint("10.1.2.4", False, ""),
            SliceEndpoint("192.0.2.1", True, ""),
        ),
        ports=(SlicePort("http", 8080),),
    )


def test_a_node_and_a_namespace() -> None:
    node = """\
apiVersion: v1
kind: Node
metadata: {name: node-1.example, labels: {topology.kubernetes.io/zone: a}}
spec: {podCIDR: 10.1.2.0/24, podCIDRs: [10.1.2.0/24, "FD00:1::/64"]}
status: {addresses: [{type: InternalIP, address: 192.168.0.10}, {type: Hostname, address: node-1}]}
"""
    assert only(node) == Node(
        name="node-1.example",
        labels={"topology.kubernetes.io/zone": "a"},
        pod_cidrs=("10.1.2.0/24", "fd00:1::/64"),
        addresses=("192.168.0.10",),
    )
    assert only("{apiVersion: v1, kind: Namespace, metadata: {name: shop}}") == Namespace(name="shop")


def test_a_peer_authentication_with_ports() -> None:
    text = """\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  mtls: {mode: STRICT}
  portLevelMtls: {8080: {mode: DISABLE}, "9090": {mode: UNSET}}
"""
    assert only(text) == PeerAuthentication(
        namespace="shop", name="web", selector={"app": "web"}, mode="STRICT", port_modes={8080: "DISABLE", 9090: None}
    )


@pytest.mark.parametrize("kind", ["Service", "Namespace"])
def test_who_chooses_endpoints_is_an_annotation(kind: str) -> None:
    manifest: dict[str, Any] = {"apiVersion": "v1", "kind": kind, "metadata": {"name": "web"}}
    if kind == "Service":
        manifest["spec"] = {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}
    assert only(json.dumps(manifest)).balance == ""  # type: ignore[union-attr]
    for choice in ("connect", "agent"):
        manifest["metadata"]["annotations"] = {"ringfence.io/balance": choice}
        assert only(json.dumps(manifest)).balance == choice  # type: ignore[union-attr]
    manifest["metadata"]["annotations"] = {"ringfence.io/balance": "kernel"}
    said = refusal(json.dumps(manifest))
    assert "metadata.annotations" in said
    assert "agent" in said
    assert "connect" in said


def test_several_documents_and_lists_are_unwrapped() -> None:
    item = {"metadata": {"name": "a", "namespace": "shop"}, "status": {"podIP": "10.1.2.3"}}
    pods = json.dumps({"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "1"}, "items": [item]})
    plain = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n"
    found = parse_manifests(f"---\n{pods}\n---\n# nothing\n---\n{plain}...\n", origin="test.yaml")
    assert [str(each.key) for each in found.objects] == ["Pod shop/a", "Namespace shop"]


def test_json_is_read_and_reported_like_yaml() -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
    }
    assert isinstance(only(json.dumps(service)), Service)
    service["spec"] = {"ports": [{"port": "80"}]}
    assert "test.yaml:11: document 1, spec.ports[0].port: " in refusal(json.dumps(service, indent=1))


def test_unknown_kinds_and_unserved_variants_are_skipped_and_reported() -> None:
    text = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {type: ExternalName, externalName: db.example, ports: []}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: x}
addressType: FQDN
endpoints: []
"""
    found = parse_manifests(text, origin="test.yaml")
    assert found.objects == ()
    assert [line.split(": ", 2)[1] for line in found.skipped] == ["document 1", "document 2", "document 3"]
    assert "apps/v1 Deployment 'web'" in found.skipped[0]


def test_plain_scalars_are_read_as_kubernetes_users_mean_them() -> None:
    found = only(
        "{apiVersion: v1, kind: Namespace, metadata: {name: no, labels: {a: 'yes', b: on, c: 2024-05-01, d: 1:30}}}"
    )
    assert found == Namespace(name="no", labels={"a": "yes", "b": "on", "c": "2024-05-01", "d": "1:30"})


@pytest.mark.parametrize(
    ("on_namespace", "on_pod", "host_network", "expected"),
    [
        (None, None, False, False),
        ("enabled", None, False, True),
        ("enabled", "disabled", False, False),
        ("disabled", "enabled", False, True),
        (None, "enabled", False, True),
        ("enabled", "enabled", True, False),
    ],
)
def test_enrolment(on_namespace: str | None, on_pod: str | None, host_network: bool, expected: bool) -> None:
    def labels(value: str | None) -> dict[str, str]:
        return {"ringfence.io/mesh": value} if value else {}

    pod = Pod(namespace="shop", name="a", uid="1", labels=labels(on_pod), host_network=host_network)
    assert enrolled(Namespace(name="shop", labels=labels(on_namespace)), pod) is expected
    if on_namespace is None:
        assert enrolled(None, pod) is expected


def test_a_node_may_be_of_another_trust_domain() -> None:
    text = "kind: Node\napiVersion: v1\nmetadata: {name: n, annotations: {ringfence.io/trust-domain: %s}}\n"
    (found,) = parse_manifests(text % "other.example", origin="node.yaml").objects
    assert isinstance(found, Node)
    assert found.trust_domain == "other.example"
    for wrong in ("Other.Example", "spiffe://other.example", '""', "a/b"):
        with pytest.raises(ManifestError, match="ringfence.io/trust-domain"):
            parse_manifests(text % wrong, origin="node.yaml")


def test_what_is_skipped_is_named_on_one_line_and_without_control_characters() -> None:
    text = 'apiVersion: "evil\\u001b[31m/v1"\nkind: "A\\nB"\nmetadata: {name: "x\\u0007"}\n'
    (skipped,) = parse_manifests(text, origin="x.yaml").skipped
    assert skipped.isprintable()
    assert "'A\\nB'" in skipped
