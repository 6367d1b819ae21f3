"""What is refused in a manifest, and what the refusal says."""

import pytest

from tests.manifest_texts import POD, SERVICE, refusal


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("podIP: 10.1.2.3", "podIP: 10.1.2.300", "test.yaml:34: document 1, status.podIP: must be an IP address"),
        ("podIP: 10.1.2.3", "podIP: 127.0.0.1", "status.podIP: must not be unspecified, loopback"),
        ("podIP: 10.1.2.3", "podIP: fe80::1%eth0", "status.podIP: must not have a zone"),
        (
            "containerPort: 8080",
            "containerPort: 0",
            "test.yaml:25: document 1, spec.containers[0].ports[0].containerPort",
        ),
        ("containerPort: 8080", "containerPort: true", "must be a port number from 1 to 65535, not True"),
        ("containerPort: 8080", "containerPort: 8080.5", "must be a port number from 1 to 65535, not 8080.5"),
        ("app: web", "app: 1", "metadata.labels.app: must be text, not 1; quote it"),
        ("ringfence.io/mesh: enabled", "ringfence.io/mesh: on", "metadata.labels['ringfence.io/mesh']: must be one of"),
        ("  name: web-6d4b75cb6d-x8zvq\n", "", "metadata.name: is missing; add it"),
        ("name: web-6d4b75cb6d-x8zvq", "name: Web", "metadata.name: must be an RFC 1123 name"),
        ("namespace: shop", "namespace: a.b", "metadata.namespace: must be an RFC 1123 label"),
        ("serviceAccountName: web", "serviceAccountName: ../x", "spec.serviceAccountName: must be an RFC 1123 name"),
        ("phase: Running", "phase: Asleep", "status.phase: must be one of Failed, Pending"),
        ('"2024-05-01T12:00:00Z"', "yesterday", "metadata.creationTimestamp: must be a time such as"),
        ("apiVersion: v1", "apiVersion: v2", "apiVersion: 'v2' is not supported for Pod; write v1"),
        ("spec:", "spec: []\nother:", "spec: must be a mapping, not []"),
        ("  containers:", "  containers: {}\n  other:", "spec.containers: must be a list, not {}"),
        ("kind: Pod\n", "", "kind: is missing"),
        ("  uid:", "  name: twice\n  uid:", "test.yaml:6: document 1: the key 'name' appears twice; remove one"),
        ("  uid:", "  more: *x\n  uid:", "test.yaml:6: document 1: the alias *x is not supported"),
        ("  uid:", "  <<: {}\n  uid:", "test.yaml:6: document 1: merge keys"),
        ("  uid:", "  a: !!python/object:x 1\n  uid:", "is not supported; remove it"),
        ("  uid:", "\tuid:", "test.yaml:6: document 1: not valid YAML: "),
    ],
)
def test_a_broken_pod_is_refused_with_its_place_and_reason(old: str, new: str, complaint: str) -> None:
    assert old in POD
    assert complaint in refusal(POD.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("port: 80,", "port: 65536,", "spec.ports[0].port: must be a port number"),
        ("port: 80,", "", "spec.ports[0].port: is missing"),
        ("port: 9090", "port: 80", "spec.ports: the same TCP port appears twice"),
        ("targetPort: http", "targetPort: 0", "spec.ports[0].targetPort: must be a port number"),
        ("protocol: UDP", "protocol: ICMP", "spec.ports[2].protocol: must be one of SCTP, TCP, UDP"),
        ("round-robin", "fastest", "metadata.annotations['ringfence.io/load-balancing']: must be one of least-latency"),
        ("type: ClusterIP", "type: Cluster", "spec.type: must be one of ClusterIP"),
        ("clusterIP: 10.96.0.1", "clusterIP: web", "spec.clusterIP: must be an IP address"),
        ("name: web\n", "name: web.shop\n", "metadata.name: must be an RFC 1123 label"),
    ],
)
def test_a_broken_service_is_refused_with_its_place_and_reason(old: str, new: str, complaint: str) -> None:
    assert old in SERVICE
    assert complaint in refusal(SERVICE.replace(old, new, 1))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("just a text", "document 1: must be a mapping, not 'just a text'"),
        ("[" * 100, "nested deeper than"),
        ("{a: " * 100, "nested deeper than"),
        ("a: " + "9" * 5000, "the number is too long"),
        ("a: \x00", "not valid YAML"),
        (POD + "---\n" + POD, "document 2: Pod shop/web-6d4b75cb6d-x8zvq appears twice in this file"),
        (
            "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: a}, "
            "spec: {portLevelMtls: {80: {mode: STRICT}}}}",
            "spec.portLevelMtls: needs a workload",
        ),
        (
            "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: a}, "
            "spec: {selector: {matchLabels: {a: b}}, portLevelMtls: {http: {mode: STRICT}}}}",
            "spec.portLevelMtls.http: the key must be a port number",
        ),
        (
            "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv6, "
            "metadata: {name: a, labels: {kubernetes.io/service-name: web}}, endpoints: [{addresses: [10.0.0.1]}]}",
            "endpoints[0].addresses: 10.0.0.1 is not IPv6",
        ),
    ],
)
def test_other_broken_files(text: str, complaint: str) -> None:
    assert complaint in refusal(text)


def test_a_billion_laughs_is_refused_at_the_first_alias() -> None:
    laughs = "a0: &a0 [lol, lol]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    assert "test.yaml:2: document 1: the alias *a0 is not supported" in refusal(laughs)


@pytest.mark.parametrize("depth", [600, 700, 800, 900, 20_000])
def test_json_that_is_nested_without_end_is_refused_like_yaml(depth: int) -> None:
    """The JSON reader lets through what a walk over it has no stack for."""
    nested = '{"a": ' * depth + "1" + "}" * depth
    head = '{"apiVersion": "ringfence.io/v1alpha1", "kind": "TrafficPolicy", "metadata": {"name": "a"}, "spec": '
    assert "nested deeper than" in refusal(head + nested + "}")
