"""Places outside of the mesh that have a name: ServiceEntry, and Services of type ExternalName.

Of Istio's ServiceEntry what a mesh of connections uses: which hosts, on which
ports, by DNS or at fixed addresses, outside of the mesh.  What Ringfence does
not serve is skipped and reported; where only the declared may be reached, a
skipped one is closed.
"""

import ipaddress
import re
import sys
from dataclasses import dataclass
from typing import Final, NamedTuple

from ca.manifests.documents import Path
from ca.manifests.egress import egress_nodes
from ca.manifests.fields import FieldError, Fields, canonical_ip, shown
from ca.manifests.names import ObjectKey
from ca.manifests.skipped import Skipped

_HOST: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*", re.ASCII)
_MAX_HOST_CHARACTERS: Final = 253  # RFC 1035 section 2.3.4, as text without the root's dot
_MAX_HOSTS: Final = 256  # Istio's API: "MaxItems: 256"
_MAX_ENDPOINTS: Final = 4096  # Istio's API
_RESOLUTIONS: Final = ("NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS")
_LOCATIONS: Final = ("MESH_EXTERNAL", "MESH_INTERNAL")


class ExternalPort(NamedTuple):
    """A port that clients connect to, and the endpoints' port unless they say otherwise."""

    name: str
    port: int
    target: int


class EndpointPort(NamedTuple):
    """What an endpoint calls the port of this name."""

    name: str
    port: int


class ExternalEndpoint(NamedTuple):
    """``host`` is a canonical IP address or a DNS name."""

    host: str
    ports: tuple[EndpointPort, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalService:
    """``kind`` is that of the manifest: Service (of type ExternalName) or ServiceEntry.

    ``hosts`` are names to resolve: where there are no ``endpoints``, their
    addresses are the endpoints, each host's for itself.  ``addresses`` are
    virtual: nobody has them, clients connect to them.  ``egress_nodes`` are those
    that its connections leave through: none for directly, None for what the
    namespace or the mesh says.
    """

    kind: str
    namespace: str
    name: str
    created: str = ""
    hosts: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    ports: tuple[ExternalPort, ...] = ()
    endpoints: tuple[ExternalEndpoint, ...] = ()
    egress_nodes: tuple[str, ...] | None = None

    @property
    def key(self) -> ObjectKey:
        return ObjectKey(self.kind, self.namespace, self.name)

    @property
    def names(self) -> frozenset[str]:
        """Everything about it that DNS has to tell."""
        return frozenset(self.hosts) | {each.host for each in self.endpoints if not is_ip(each.host)}


def is_ip(host: str) -> bool:
    """Whether a host of these values is an address; no DNS name of theirs looks like one."""
    return ":" in host or host.rpartition(".")[2].isdigit()


def external_name(top: Fields) -> ExternalService | Skipped:
    """Read a Service of type ExternalName; raises FieldError."""
    metadata, spec = top.fields("metadata"), top.fields("spec")
    namespace, name = _names(metadata)
    host = _dns_name(spec.text("externalName"), (*spec.path, "externalName"))
    ports = _ports(spec, "port")
    if not ports:
        return Skipped(
            f"Service {namespace}/{name} is of type ExternalName and has no ports; "
            "add those at which it may be reached to spec.ports"
        )
    return ExternalService(
        kind="Service",
        namespace=namespace,
        name=name,
        created=metadata.moment("creationTimestamp"),
        hosts=(host,),
        ports=ports,
        egress_nodes=egress_nodes(metadata),
    )


def parse_service_entry(top: Fields) -> ExternalService | Skipped:
    """Read a ServiceEntry; raises FieldError."""
    metadata, spec = top.fields("metadata"), top.fields("spec")
    namespace, name = _names(metadata)
    resolution = spec.choice("resolution", _RESOLUTIONS, "NONE")
    reason = _not_served(spec, resolution)
    if reason:
        return Skipped(f"ServiceEntry {namespace}/{name} {reason}")
    hosts = spec.texts("hosts")
    if not 1 <= len(hosts) <= _MAX_HOSTS:
        raise spec.error("hosts", f"must hold 1 to {_MAX_HOSTS} hosts, not {len(hosts)}")
    ports = _ports(spec, "number")
    if not ports:
        raise spec.error("ports", "is missing or has no TCP port; add at least one")
    endpoints = _endpoints(spec, resolution, {each.name for each in ports})
    addresses = tuple(dict.fromkeys(spec.ips("addresses")))
    names: tuple[str, ...] = ()
    if resolution == "DNS":
        names = tuple(dict.fromkeys(_dns_name(each, (*spec.path, "hosts", index)) for index, each in enumerate(hosts)))
        if addresses and not endpoints and len(names) > 1:
            raise spec.error("addresses", "do not tell the hosts apart; write one ServiceEntry for each host")
    return ExternalService(
        kind="ServiceEntry",
        namespace=namespace,
        name=name,
        created=metadata.moment("creationTimestamp"),
        hosts=names,
        addresses=addresses,
        ports=ports,
        endpoints=endpoints,
        egress_nodes=egress_nodes(metadata),
    )


def _not_served(spec: Fields, resolution: str) -> str:
    if spec.choice("location", _LOCATIONS, _LOCATIONS[0]) != _LOCATIONS[0]:
        return "is of location MESH_INTERNAL, which is not supported: pods and Services are in the mesh"
    if resolution not in ("STATIC", "DNS"):
        return f"is of resolution {resolution}, which is not supported; write STATIC or DNS"
    if spec.has("workloadSelector"):
        return "has a workloadSelector, which is not supported; write endpoints"
    if spec.has("exportTo") and spec.texts("exportTo") != ["*"]:
        return 'has an exportTo, which is not supported: it would be open to every namespace; write ["*"]'
    return ""


def _ports(spec: Fields, key: str) -> tuple[ExternalPort, ...]:
    ports = []
    for each in spec.list_of_fields("ports"):
        if each.text("protocol", "TCP").upper() in ("UDP", "SCTP"):
            continue
        number = each.port(key)
        # A name of a container's port means nothing outside of the cluster.
        is_number = each.has("targetPort") and not isinstance(each.raw("targetPort"), str)
        ports.append(
            ExternalPort(each.shared_text("name", ""), number, each.port("targetPort") if is_number else number)
        )
    if len({each.port for each in ports}) != len(ports):
        raise spec.error("ports", "the same TCP port appears twice; remove one")
    return tuple(ports)


def _endpoints(spec: Fields, resolution: str, port_names: set[str]) -> tuple[ExternalEndpoint, ...]:
    listed = spec.list_of_fields("endpoints")
    if len(listed) > _MAX_ENDPOINTS:
        raise spec.error("endpoints", f"must hold at most {_MAX_ENDPOINTS}, not {len(listed)}")
    if resolution == "STATIC" and not listed:
        raise spec.error("endpoints", "is missing; resolution STATIC needs at least one")
    found = []
    for each in listed:
        text = each.text("address")
        path = (*each.path, "address")
        host = canonical_ip(text, path) if resolution == "STATIC" or _looks_like_ip(text) else _dns_name(text, path)
        by_name = each.fields("ports")
        for name in by_name:
            if name not in port_names:
                raise by_name.error(name, "is the name of no port in spec.ports; correct either")
        found.append(ExternalEndpoint(host, tuple(EndpointPort(name, by_name.port(name)) for name in by_name)))
    return tuple(dict.fromkeys(found))


def _dns_name(text: str, path: Path) -> str:
    name = text.removesuffix(".").lower()
    if name.startswith("*"):
        raise FieldError(path, f"a wildcard can not be resolved, {shown(text)}; write each host")
    if len(name) > _MAX_HOST_CHARACTERS or not _HOST.fullmatch(name) or is_ip(name):
        raise FieldError(path, f"must be a DNS name such as api.example.com, not {shown(text)}")
    return sys.intern(name)


def _looks_like_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _names(metadata: Fields) -> tuple[str, str]:
    return sys.intern(metadata.name("namespace", "default", label=True)), metadata.name("name")
