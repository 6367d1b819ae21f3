"""The values that travel through the data path, valid by construction.

Addresses carry their role in their type: an ``OriginalDestination`` (where the
application wanted to go) can not be handed to code that wants an
``EndpointAddress`` (where we decided to connect).  They are named tuples, not
dataclasses, because one is built for every connection.

IP addresses are text in canonical form: what :mod:`ipaddress` prints, never
v4-mapped.  They are made canonical once, at the door (``capture`` for sockets,
``ca.manifests`` for manifests), so that equality is string equality.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final, NamedTuple

from ca.spiffe import SpiffeId

NO_LABELS: Final[Mapping[str, str]] = MappingProxyType({})


class OriginalDestination(NamedTuple):
    """Where the application asked to go, before redirection."""

    ip: str
    port: int

    def __str__(self) -> str:
        return join_host_port(self.ip, self.port)


class EndpointAddress(NamedTuple):
    """Where an endpoint of a service listens: pod IP and container port."""

    ip: str
    port: int

    def __str__(self) -> str:
        return join_host_port(self.ip, self.port)


class PeerAddress(NamedTuple):
    """The remote address of a socket that was accepted."""

    ip: str
    port: int

    def __str__(self) -> str:
        return join_host_port(self.ip, self.port)


def join_host_port(ip: str, port: int) -> str:
    """Write an address as RFC 3986 section 3.2.2 does: IPv6 in brackets."""
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


class ObjectName(NamedTuple):
    """Namespace and name of a Kubernetes object."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class MtlsMode(StrEnum):
    """PeerAuthentication mode in force for one workload and port.

    ``DISABLE`` is read as ``PERMISSIVE``: the inbound side accepts plaintext,
    but an enrolled source still uses the tunnel, because plaintext between
    enrolled workloads is never sent (docs/architecture.md).
    """

    STRICT = "STRICT"
    PERMISSIVE = "PERMISSIVE"
    DISABLE = "DISABLE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Locality:
    """Topology labels of the node; empty text where unknown."""

    region: str = ""
    zone: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cgroup:
    """Where the processes of a workload are that is no pod, and what of its addresses is its own.

    Either ``path``, below the root of the cgroup v2 hierarchy, or ``unit``, of
    systemd.  ``ports`` are its TCP ports; None: all of them.
    """

    path: str = ""
    unit: str = ""
    ports: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What runs: a pod, or a cgroup, with its addresses and identity.

    ``uid`` tells two incarnations of the same name apart: a pod that was
    deleted and made again has another uid.  ``identity`` is set whether or not
    the workload is enrolled; only ``enrolled`` workloads are captured and
    reached through a tunnel.
    """

    uid: str
    name: ObjectName
    service_account: str
    node: str
    addresses: tuple[str, ...]
    identity: SpiffeId
    enrolled: bool
    ready: bool = True
    labels: Mapping[str, str] = field(default_factory=lambda: NO_LABELS, hash=False)
    locality: Locality = Locality()
    named_ports: Mapping[str, int] = field(default_factory=dict, hash=False)
    cgroup: "Cgroup | None" = None
    proxy_protocol_ports: tuple[int, ...] = ()


EndpointKey = tuple[EndpointAddress, str]
"""And the uid of the workload, or of the egress, or nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One place that serves a service port.

    ``workload`` is None where the address belongs to no workload that we know
    (an EndpointSlice that points outside the cluster): reached in plaintext, or
    through ``egress``, a pod whose agent connects to it for us.
    """

    address: EndpointAddress
    workload: Workload | None
    ready: bool = True
    egress: Workload | None = None

    @property
    def agent_of(self) -> Workload | None:
        """The workload that a tunnel leads to, if there is one: its own, or that of its egress."""
        return self.workload if self.egress is None else self.egress

    @property
    def key(self) -> EndpointKey:
        """What tells it from others, and from another incarnation of its workload."""
        workload = self.workload if self.egress is None else self.egress
        return (self.address, "" if workload is None else workload.uid)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePort:
    """One port of one service: what a client connects to.

    Identity semantics: two values are equal when service and port are; the
    endpoints are asked from the registry, which may change them at any time.
    ``kind`` is Service or ServiceEntry, which may have the same name;
    ``is_external``: its endpoints are outside of the mesh.
    """

    service: ObjectName
    port: int
    name: str = ""
    load_balancing: str = "least-latency"
    kind: str = "Service"
    is_external: bool = False

    def __str__(self) -> str:
        return f"{self.service}:{self.port}"
