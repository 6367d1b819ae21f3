"""The kinds of objects that Ringfence uses, as values with only the fields that it uses.

Built by :mod:`ca.manifests.parse`, which is their only validation: IP
addresses are canonical, names are RFC 1123, ports are 1 to 65535.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ca.manifests.authorization import AuthorizationPolicy
from ca.manifests.external import ExternalService
from ca.manifests.fields import NO_LABELS
from ca.manifests.names import ObjectKey
from ca.manifests.tcp_route import TCPRoute
from ca.manifests.traffic import TrafficPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """``egress_nodes``: of the places outside that are declared in it and say nothing themselves (egress.py).

    ``same_node`` is how its workloads are reached on their own node, ``balance`` who chooses the endpoints of its
    services that are not in the mesh; empty where it does not say.
    """

    name: str
    labels: Mapping[str, str] = field(default_factory=lambda: NO_LABELS, hash=False)
    egress_nodes: tuple[str, ...] | None = None
    same_node: str = ""
    balance: str = ""

    @property
    def key(self) -> ObjectKey:
        return ObjectKey("Namespace", "", self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """``pod_cidrs`` are canonical networks; ``addresses`` are the node's own IPs.

    ``trust_domain`` is the one whose CA certifies the pods on it; empty for that of whoever reads.
    """

    name: str
    labels: Mapping[str, str] = field(default_factory=lambda: NO_LABELS, hash=False)
    pod_cidrs: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    trust_domain: str = ""

    @property
    def key(self) -> ObjectKey:
        return ObjectKey("Node", "", self.name)


class ContainerPort(NamedTuple):
    """A TCP port of a container; ``name`` may be empty."""

    name: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupPlace:
    """Where a Workload's processes are: ``path`` or ``unit``; ``ports`` None: all of its addresses are its own."""

    path: str = ""
    unit: str = ""
    ports: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """``uid`` is never empty: derived from name, addresses and account where the manifest has none.

    ``created`` is UTC text that sorts by time, empty where unknown.  ``ready``
    is the Ready condition alone; ``terminating`` is deletionTimestamp.
    """

    namespace: str
    name: str
    uid: str
    labels: Mapping[str, str] = field(default_factory=lambda: NO_LABELS, hash=False)
    created: str = ""
    terminating: bool = False
    node_name: str = ""
    service_account: str = "default"
    host_network: bool = False
    ports: tuple[ContainerPort, ...] = ()
    phase: str = "Running"
    addresses: tuple[str, ...] = ()
    ready: bool = True
    proxy_protocol_ports: tuple[int, ...] = ()
    cgroup: CgroupPlace | None = None

    @property
    def key(self) -> ObjectKey:
        return ObjectKey("Pod", self.namespace, self.name)

    @property
    def finished(self) -> bool:
        """Its containers have ended for good; its address may belong to another pod by now."""
        return self.phase in ("Succeeded", "Failed")


class ServicePortSpec(NamedTuple):
    """A TCP port of a service; ``target`` is a number or the name of a container port."""

    name: str
    port: int
    target: int | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """``cluster_ips`` is empty for a headless service; ``same_node`` and ``balance`` are as its Namespace's."""

    namespace: str
    name: str
    created: str = ""
    cluster_ips: tuple[str, ...] = ()
    ports: tuple[ServicePortSpec, ...] = ()
    selector: Mapping[str, str] = field(default_factory=lambda: NO_LABELS, hash=False)
    publish_not_ready: bool = False
    load_balancing: str = "least-latency"
    same_node: str = ""
    balance: str = ""

    @property
    def key(self) -> ObjectKey:
        return ObjectKey("Service", self.namespace, self.name)


class SlicePort(NamedTuple):
    """A TCP port of a slice; ``name`` matches the service's port name."""

    name: str
    port: int


class SliceEndpoint(NamedTuple):
    """``pod`` is the name of the Pod (in the slice's namespace) or empty."""

    address: str
    ready: bool = True
    pod: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSlice:
    namespace: str
    name: str
    service: str
    ip_version: int
    endpoints: tuple[SliceEndpoint, ...] = ()
    ports: tuple[SlicePort, ...] = ()

    @property
    def key(self) -> ObjectKey:
        return ObjectKey("EndpointSlice", self.namespace, self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerAuthentication:
    """Modes are STRICT, PERMISSIVE, DISABLE, or None for UNSET (inherits)."""

    namespace: str
    name: str
    created: str = ""
    selector: Mapping[str, str] = field(default_factory=lambda: NO_LABELS, hash=False)
    mode: str | None = None
    port_modes: Mapping[int, str | None] = field(default_factory=dict, hash=False)

    @property
    def key(self) -> ObjectKey:
        return ObjectKey("PeerAuthentication", self.namespace, self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineWorkload:
    """A Workload manifest: what it is as a ``pod``, which has a cgroup."""

    pod: Pod

    @property
    def key(self) -> ObjectKey:
        return ObjectKey("Workload", self.pod.namespace, self.pod.name)


ManifestObject = (
    Namespace
    | Node
    | Pod
    | Service
    | ExternalService
    | EndpointSlice
    | PeerAuthentication
    | AuthorizationPolicy
    | TrafficPolicy
    | TCPRoute
    | MachineWorkload
)
