"""What each kind of object must say for Ringfence to use it.

One function a kind, from its fields to a value of :mod:`ca.manifests.objects`,
or to ``Skipped`` for a variant that Ringfence does not serve (slices of host
names).
"""

import hashlib
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final

from ca.manifests.authorization_policy import parse_authorization_policy
from ca.manifests.egress import EGRESS_LABEL, EGRESS_NODE_ANNOTATION, EGRESS_VALUES, egress_nodes
from ca.manifests.enrolment import MESH_LABEL, MESH_VALUES
from ca.manifests.external import ExternalService, external_name, parse_service_entry
from ca.manifests.fields import Fields, shown
from ca.manifests.objects import (
    ContainerPort,
    EndpointSlice,
    MachineWorkload,
    ManifestObject,
    Namespace,
    Node,
    PeerAuthentication,
    Pod,
    Service,
    ServicePortSpec,
    SliceEndpoint,
    SlicePort,
)
from ca.manifests.skipped import Skipped
from ca.manifests.tcp_route import parse_tcp_route
from ca.manifests.traffic_policy import parse_traffic_policy
from ca.manifests.workload import parse_workload
from ca.spiffe import SpiffeId, SpiffeIdError

LOAD_BALANCING_ANNOTATION: Final = "ringfence.io/load-balancing"
SAME_NODE_ANNOTATION: Final = "ringfence.io/same-node"
SAME_NODE: Final = ("tunnel", "lane")
BALANCE_ANNOTATION: Final = "ringfence.io/balance"
BALANCE: Final = ("agent", "connect")
PROXY_PROTOCOL_ANNOTATION: Final = "ringfence.io/proxy-protocol"
TRUST_DOMAIN_ANNOTATION: Final = "ringfence.io/trust-domain"
LOAD_BALANCING: Final = ("least-latency", "round-robin")
SERVICE_NAME_LABEL: Final = "kubernetes.io/service-name"
_PHASES: Final = ("Pending", "Running", "Succeeded", "Failed", "Unknown")
_PROTOCOLS: Final = ("TCP", "UDP", "SCTP")
_MTLS_MODES: Final = ("STRICT", "PERMISSIVE", "DISABLE", "UNSET")
_SERVICE_TYPES: Final = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")


def _namespace(top: Fields) -> Namespace:
    metadata = top.fields("metadata")
    return Namespace(
        name=metadata.name("name", label=True),
        labels=_mesh_labels(metadata),
        egress_nodes=egress_nodes(metadata),
        same_node=_asked(metadata, SAME_NODE_ANNOTATION, SAME_NODE),
        balance=_asked(metadata, BALANCE_ANNOTATION, BALANCE),
    )


def _node(top: Fields) -> Node:
    metadata, spec = top.fields("metadata"), top.fields("spec")
    cidrs = spec.networks("podCIDRs")
    if not cidrs and spec.has("podCIDR"):
        cidrs = [spec.network("podCIDR")]
    addresses = [
        each.ip("address")
        for each in top.fields("status").list_of_fields("addresses")
        if each.text("type") in ("InternalIP", "ExternalIP")
    ]
    return Node(
        name=metadata.name("name"),
        labels=metadata.labels("labels"),
        pod_cidrs=tuple(dict.fromkeys(cidrs)),
        addresses=tuple(dict.fromkeys(addresses)),
        trust_domain=_trust_domain(metadata),
    )


def _trust_domain(metadata: Fields) -> str:
    """An annotation, not a label: a trust domain may have 255 characters, and begin and end with any."""
    annotations = metadata.fields("annotations")
    if not annotations.has(TRUST_DOMAIN_ANNOTATION):
        return ""
    text = annotations.text(TRUST_DOMAIN_ANNOTATION)
    try:
        return sys.intern(SpiffeId(text, "").trust_domain)
    except SpiffeIdError as error:
        raise annotations.error(TRUST_DOMAIN_ANNOTATION, f"{error}; write a name such as cluster.local") from None


def _pod(top: Fields) -> Pod:
    metadata, spec, status = top.fields("metadata"), top.fields("spec"), top.fields("status")
    namespace, name = _names(metadata)
    addresses = [each.ip("ip") for each in status.list_of_fields("podIPs") if each.has("ip")]
    if status.has("podIP") and (primary := status.ip("podIP")) not in addresses:
        addresses.insert(0, primary)
    addresses = list(dict.fromkeys(addresses))
    service_account = spec.name("serviceAccountName", spec.text("serviceAccount", "default") or "default")
    node_name = spec.name("nodeName") if spec.text("nodeName", "") else ""
    # The API server always writes a phase; a hand-written pod with an address is meant to run.
    phase = status.choice("phase", _PHASES, "Running" if addresses else "Pending")
    return Pod(
        namespace=namespace,
        name=name,
        uid=metadata.text("uid", "") or _derived_uid(namespace, name, service_account, node_name, *addresses),
        labels=_mesh_labels(metadata),
        created=metadata.moment("creationTimestamp"),
        terminating=metadata.has("deletionTimestamp"),
        node_name=sys.intern(node_name),
        service_account=sys.intern(service_account),
        host_network=spec.flag("hostNetwork", False),
        ports=_container_ports(spec),
        phase=phase,
        addresses=tuple(addresses),
        ready=_ready_condition(status, phase),
        proxy_protocol_ports=_proxy_protocol_ports(metadata.fields("annotations")),
    )


def _proxy_protocol_ports(annotations: Fields) -> tuple[int, ...]:
    """The ports of the programs that expect a PROXY protocol header, as ``"8080,9090"``."""
    if not annotations.has(PROXY_PROTOCOL_ANNOTATION):
        return ()
    found = set()
    for text in annotations.text(PROXY_PROTOCOL_ANNOTATION).split(","):
        number = text.strip()
        if not (number.isascii() and number.isdigit() and 1 <= int(number[:6]) <= 65535):
            raise annotations.error(
                PROXY_PROTOCOL_ANNOTATION,
                f'must be ports with commas between them, such as "8080,9090", not {shown(text)}',
            )
        found.add(int(number))
    return tuple(sorted(found))


def _derived_uid(*parts: str) -> str:
    """What a manifest without a uid gets: equal only for a pod that may take the old one's place.

    Name alone would not do: a pod deleted and made again under its name, with
    another address or account, must not inherit the old one's tunnels.
    """
    return "derived-" + hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def _container_ports(spec: Fields) -> tuple[ContainerPort, ...]:
    ports = []
    # Sidecars are init containers that keep running, and may serve named ports.
    for container in (*spec.list_of_fields("containers"), *spec.list_of_fields("initContainers")):
        for each in container.list_of_fields("ports"):
            if each.choice("protocol", _PROTOCOLS, "TCP") == "TCP":
                ports.append(ContainerPort(each.shared_text("name", ""), each.port("containerPort")))
    return _shared_ports(tuple(ports))


@lru_cache(maxsize=4096)
def _shared_ports(ports: tuple[ContainerPort, ...]) -> tuple[ContainerPort, ...]:
    """Pods of one deployment have equal ports: hold them once."""
    return ports


def _ready_condition(status: Fields, phase: str) -> bool:
    for condition in status.list_of_fields("conditions"):
        if condition.text("type") == "Ready":
            return condition.text("status") == "True"
    return phase == "Running"


def _service(top: Fields) -> Service | ExternalService | Skipped:
    metadata, spec = top.fields("metadata"), top.fields("spec")
    namespace, name = _names(metadata, label=True)
    if spec.choice("type", _SERVICE_TYPES, "ClusterIP") == "ExternalName":
        return external_name(top)
    ips: list[str] = []
    if spec.text("clusterIP", "") not in ("", "None"):
        ips.append(spec.ip("clusterIP"))
    if spec.raw("clusterIPs") != ["None"]:
        ips += spec.ips("clusterIPs")
    annotations = metadata.fields("annotations")
    if annotations.has(EGRESS_NODE_ANNOTATION):
        raise annotations.error(
            EGRESS_NODE_ANNOTATION,
            "is for a ServiceEntry or a Service of type ExternalName; declare the places outside by one of these",
        )
    ports = tuple(
        ServicePortSpec(each.shared_text("name", ""), each.port("port"), _target_port(each))
        for each in spec.list_of_fields("ports")
        if each.choice("protocol", _PROTOCOLS, "TCP") == "TCP"
    )
    if len({each.port for each in ports}) != len(ports):
        raise spec.error("ports", "the same TCP port appears twice; remove one")
    return Service(
        namespace=namespace,
        name=name,
        created=metadata.moment("creationTimestamp"),
        cluster_ips=tuple(dict.fromkeys(ips)),
        ports=ports,
        selector=spec.labels("selector"),
        publish_not_ready=spec.flag("publishNotReadyAddresses", False),
        load_balancing=annotations.choice(LOAD_BALANCING_ANNOTATION, LOAD_BALANCING, LOAD_BALANCING[0]),
        same_node=_asked(metadata, SAME_NODE_ANNOTATION, SAME_NODE),
        balance=_asked(metadata, BALANCE_ANNOTATION, BALANCE),
    )


def _asked(metadata: Fields, annotation: str, choices: tuple[str, ...]) -> str:
    """What an annotation says; empty if it is not there."""
    annotations = metadata.fields("annotations")
    return annotations.choice(annotation, choices) if annotations.has(annotation) else ""


def _target_port(port: Fields) -> int | str:
    if isinstance(port.raw("targetPort"), str):
        if name := port.text("targetPort"):
            return name
    elif port.has("targetPort"):
        return port.port("targetPort")
    return port.port("port")


def _endpoint_slice(top: Fields) -> EndpointSlice | Skipped:
    metadata = top.fields("metadata")
    namespace, name = _names(metadata)
    family = top.choice("addressType", ("IPv4", "IPv6", "FQDN"))
    labels = metadata.fields("labels")
    if family == "FQDN":
        return Skipped(f"EndpointSlice {namespace}/{name} is of addressType FQDN, which is not supported")
    if not labels.has(SERVICE_NAME_LABEL):
        return Skipped(f"EndpointSlice {namespace}/{name} has no label {SERVICE_NAME_LABEL}: it belongs to no Service")
    ip_version = 6 if family == "IPv6" else 4
    ports = tuple(
        SlicePort(each.shared_text("name", ""), each.port("port"))
        for each in top.list_of_fields("ports")
        if each.choice("protocol", _PROTOCOLS, "TCP") == "TCP" and each.has("port")
    )
    endpoints = tuple(_slice_endpoint(each, ip_version) for each in top.list_of_fields("endpoints"))
    service = labels.name(SERVICE_NAME_LABEL, label=True)
    return EndpointSlice(
        namespace=namespace, name=name, service=service, ip_version=ip_version, endpoints=endpoints, ports=ports
    )


def _slice_endpoint(endpoint: Fields, ip_version: int) -> SliceEndpoint:
    """Kubernetes API: "consumers must handle only the first address"; "nil [ready] should be interpreted as true"."""
    addresses = endpoint.ips("addresses")
    if not addresses:
        raise endpoint.error("addresses", "is missing; write at least one address")
    if (":" in addresses[0]) != (ip_version == 6):
        raise endpoint.error("addresses", f"{addresses[0]} is not IPv{ip_version}, as addressType says; correct either")
    target = endpoint.fields("targetRef")
    pod = target.name("name") if target.text("kind", "") == "Pod" else ""
    return SliceEndpoint(addresses[0], endpoint.fields("conditions").flag("ready", True), pod)


def _peer_authentication(top: Fields) -> PeerAuthentication:
    metadata, spec = top.fields("metadata"), top.fields("spec")
    namespace, name = _names(metadata)
    selector = spec.fields("selector").labels("matchLabels")
    port_modes = {}
    by_port = spec.fields("portLevelMtls")
    for key in by_port:
        if not (key.isascii() and key.isdigit() and 1 <= int(key[:6]) <= 65535):
            raise by_port.error(key, "the key must be a port number from 1 to 65535, of the workload")
        port_modes[int(key)] = _mtls_mode(by_port.fields(key))
    if port_modes and not selector:
        # Istio says of port specific settings: "These only apply when a workload selector is specified."
        raise spec.error("portLevelMtls", "needs a workload; add spec.selector.matchLabels")
    return PeerAuthentication(
        namespace=namespace,
        name=name,
        created=metadata.moment("creationTimestamp"),
        selector=selector,
        mode=_mtls_mode(spec.fields("mtls")),
        port_modes=port_modes,
    )


def _mtls_mode(mtls: Fields) -> str | None:
    mode = mtls.choice("mode", _MTLS_MODES, "UNSET")
    return None if mode == "UNSET" else mode


def _names(metadata: Fields, *, label: bool = False) -> tuple[str, str]:
    return sys.intern(metadata.name("namespace", "default", label=True)), metadata.name("name", label=label)


def _mesh_labels(metadata: Fields) -> Mapping[str, str]:
    """Labels, with our own checked: a typing error there must not leave a pod in the open."""
    for label, values in ((MESH_LABEL, MESH_VALUES), (EGRESS_LABEL, EGRESS_VALUES)):
        if metadata.fields("labels").has(label):
            metadata.fields("labels").choice(label, values)
    return metadata.labels("labels")


def _workload(top: Fields) -> MachineWorkload:
    return parse_workload(top, _mesh_labels(top.fields("metadata")))


_Parser = Callable[[Fields], ManifestObject | Skipped]
KINDS: Final[dict[tuple[str, str], tuple[tuple[str, ...], _Parser]]] = {
    ("", "Namespace"): (("v1",), _namespace),
    ("", "Node"): (("v1",), _node),
    ("", "Pod"): (("v1",), _pod),
    ("", "Service"): (("v1",), _service),
    ("discovery.k8s.io", "EndpointSlice"): (("v1",), _endpoint_slice),
    ("security.istio.io", "PeerAuthentication"): (("v1", "v1beta1"), _peer_authentication),
    ("security.istio.io", "AuthorizationPolicy"): (("v1", "v1beta1"), parse_authorization_policy),
    ("networking.istio.io", "ServiceEntry"): (("v1", "v1beta1", "v1alpha3"), parse_service_entry),
    ("gateway.networking.k8s.io", "TCPRoute"): (("v1alpha2", "v1alpha3", "v1"), parse_tcp_route),
    ("ringfence.io", "TrafficPolicy"): (("v1alpha1",), parse_traffic_policy),
    ("ringfence.io", "Workload"): (("v1alpha1",), _workload),
}
