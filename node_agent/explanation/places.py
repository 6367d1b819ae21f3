"""What an operator's words mean: ``[NAMESPACE/]POD`` or an address; ``[NAMESPACE/]SERVICE:PORT`` or an address.

Sans-I/O.  A name without a namespace is looked for where a program would mean it
(a destination beside its source), then in ``default``, then anywhere, if there
is only one.
"""

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

from node_agent.model import (
    Endpoint,
    EndpointAddress,
    ObjectName,
    OriginalDestination,
    ServicePort,
    Workload,
    join_host_port,
)
from node_agent.registry import Registry

T = TypeVar("T")

_DEFAULT_NAMESPACE: Final = "default"
_NEAR: Final = 3
_MOST_MISTYPED: Final = 3  # letters too many or too few
_MOST_COMPARED: Final = 2_000  # names: some ten milliseconds


class UnknownPlace(LookupError):
    """Nothing is called that; the text says what is meant perhaps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Who connects: a workload, or an address that is none's."""

    workload: Workload | None
    addresses: tuple[str, ...]

    @property
    def name(self) -> str:
        return str(self.workload.name) if self.workload is not None else self.addresses[0]

    def address(self, ip_version: int) -> str | None:
        """Where it comes from by this IP version."""
        return next((each for each in self.addresses if (":" in each) is (ip_version == 6)), None)


class Share(NamedTuple):
    """A service port that gets ``percent`` of the connections."""

    service: ServicePort
    percent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a connection goes: to a service port (or, by a TCPRoute, to several), or to one place.

    ``endpoints`` are of all of them.  ``problem`` says why it goes nowhere.
    """

    asked: str
    port: int
    address: OriginalDestination | None
    service: ServicePort | None
    shares: tuple[Share, ...]
    endpoints: tuple[Endpoint, ...]
    route: ObjectName | None = None
    problem: str | None = None


class Places:
    """Looks names and addresses up.

    ``registry_only``: a local workload may not go to what the registry does not know.
    """

    def __init__(self, registry: Registry, *, registry_only: bool) -> None:
        self._registry = registry
        self._registry_only = registry_only

    def source(self, text: str) -> Source:
        """Raises UnknownPlace."""
        ip = _ip(text)
        if ip is not None:
            workload = self._registry.workload_at(ip)
            return Source(workload=workload, addresses=(ip,))
        name = self._named(text, None, self._registry.workload_named, self._pod_names, "pod")
        workload = self._registry.workload_named(name)
        assert workload is not None
        return Source(workload=workload, addresses=workload.addresses)

    def target(self, text: str, source: Source) -> Target:
        """Raises UnknownPlace."""
        host, port = _host_and_port(text)
        ip = _ip(host)
        if ip is not None:
            if port is None:
                raise UnknownPlace(f"{text!r} has no port: {join_host_port(ip, 80)}, for instance")
            return self._at(text, OriginalDestination(ip, port))
        beside = source.workload.name.namespace if source.workload is not None else None
        try:
            name = self._by_dns(host) or self._named(host, beside, self._service_named, self._service_names, "service")
        except UnknownPlace as unknown:
            return self._pod(text, host, port, beside, unknown)
        return self._service(text, name, port)

    # -- names ----------------------------------------------------------------------

    def _named(
        self,
        text: str,
        beside: str | None,
        look: Callable[[ObjectName], object],
        names: Callable[[], Iterable[ObjectName]],
        kind: str,
    ) -> ObjectName:
        namespace, slash, name = text.rpartition("/")
        if slash:
            wanted = ObjectName(namespace, name)
            if look(wanted) is None:
                raise UnknownPlace(_unknown(kind, text, names()))
            return wanted
        for each in dict.fromkeys((beside or _DEFAULT_NAMESPACE, _DEFAULT_NAMESPACE)):
            if look(ObjectName(each, name)) is not None:
                return ObjectName(each, name)
        found = sorted(each for each in names() if each.name == name)
        if len(found) == 1:
            return found[0]
        if found:
            listed = ", ".join(map(str, found))
            raise UnknownPlace(f"there are several {kind}s called {name}: {listed}; name one of them")
        raise UnknownPlace(_unknown(kind, text, names()))

    def _by_dns(self, host: str) -> ObjectName | None:
        """``web.shop``, ``web.shop.svc``, ``web.shop.svc.cluster.local``: as programs call a service."""
        name, _, rest = host.partition(".")
        namespace, _, suffix = rest.partition(".")
        wanted = ObjectName(namespace, name)
        known = not suffix or suffix == "svc" or suffix.startswith("svc.")
        return wanted if known and self._registry.is_service(wanted) else None

    def _pod_names(self) -> Iterable[ObjectName]:
        return (each.name for each in self._registry.workloads())

    def _service_named(self, name: ObjectName) -> object:
        return name if self._registry.is_service(name) else None

    def _service_names(self) -> Iterable[ObjectName]:
        for each in self._registry.services():
            yield ObjectName(each.namespace, each.name)
        for outside in self._registry.external_services():
            yield ObjectName(outside.namespace, outside.name)

    # -- destinations ---------------------------------------------------------------

    def _pod(self, text: str, host: str, port: int | None, beside: str | None, unknown: UnknownPlace) -> Target:
        """A pod's name is understood as well."""
        try:
            name = self._named(host, beside, self._registry.workload_named, self._pod_names, "pod")
        except UnknownPlace as no_pod:
            raise (no_pod if "perhaps" in str(no_pod) and "perhaps" not in str(unknown) else unknown) from None
        workload = self._registry.workload_named(name)
        assert workload is not None
        if port is None:
            raise UnknownPlace(f"{text!r} has no port, and {name} is a pod: {text}:8080, for instance")
        endpoints = tuple(Endpoint(address=EndpointAddress(ip, port), workload=workload) for ip in workload.addresses)
        return Target(asked=text, port=port, address=None, service=None, shares=(), endpoints=endpoints)

    def _service(self, text: str, name: ObjectName, port: int | None) -> Target:
        ports = self._registry.service_ports(name)
        listed = ", ".join(str(each.port) for each in ports) or "none"
        if port is None:
            if len(ports) != 1:
                raise UnknownPlace(f"{text!r} has no port; {name} has {listed}")
            (service,) = ports
        else:
            found = next((each for each in ports if each.port == port), None)
            if found is None:
                raise UnknownPlace(f"service {name} has no port {port}; it has {listed}")
            service = found
        return self._of(text, service, None)

    def _of(self, text: str, service: ServicePort, address: OriginalDestination | None) -> Target:
        """A service port, or what a TCPRoute makes of it."""
        registry = self._registry
        versions = (4, 6) if address is None else (6 if ":" in address.ip else 4,)
        shares: list[Share] = [Share(service, 100.0)]
        problem, route = None, None
        split = registry.split(service)
        if split is not None:
            route, shares = split.route, []
            before = 0
            for backend, upto in zip(split.backends, split.upto, strict=True):
                weight, before = upto - before, upto
                found = registry.service_port(*backend)
                if weight and found is None:
                    problem = f"TCPRoute {split.route} leads to {backend[0]} port {backend[1]}, which does not exist"
                elif weight and found is not None:
                    shares.append(Share(found, round(100 * weight / split.upto[-1], 2)))
        endpoints = tuple(
            each for share in shares for version in versions for each in registry.endpoints(share.service, version)
        )
        return Target(
            asked=text,
            port=service.port,
            address=address,
            service=service,
            shares=tuple(shares),
            endpoints=endpoints,
            route=route,
            problem=problem or (None if endpoints else f"{service} has no endpoint"),
        )

    def _at(self, text: str, address: OriginalDestination) -> Target:
        """What a connection to this address would be for: the router's order (proxy/routes.py)."""
        registry = self._registry
        ip, port = address
        service = registry.service_at(ip, port)
        if service is not None:
            return self._of(text, service, address)
        workload = registry.workload_at(ip)
        place = EndpointAddress(ip, port)
        problem = None
        endpoints: Sequence[Endpoint] = (Endpoint(address=place, workload=workload),)
        if workload is None:
            outside = registry.external_at(ip, port)
            if registry.is_service_ip(ip):
                endpoints, problem = (), f"the service at {ip} has no port {port}"
            elif outside is not None:
                service, endpoints = outside
            elif registry.in_pod_network(ip):
                endpoints, problem = (), f"{ip} is in the pod network, but no workload has it"
            elif self._registry_only:
                endpoints = ()
                problem = f"{address} is no workload and no Service, and outbound_traffic_policy is registry-only"
        return Target(
            asked=text,
            port=port,
            address=address,
            service=service,
            shares=() if service is None else (Share(service, 100.0),),
            endpoints=tuple(endpoints),
            problem=problem,
        )


def _unknown(kind: str, text: str, names: Iterable[ObjectName]) -> str:
    import difflib  # noqa: PLC0415  # costs memory, and is for who mistyped

    last = text.rpartition("/")[2]
    alike: dict[str, list[str]] = {}
    for each in names:
        if abs(len(each.name) - len(last)) <= _MOST_MISTYPED and len(alike) < _MOST_COMPARED:
            alike.setdefault(each.name, []).append(str(each))
    near = [full for name in difflib.get_close_matches(last, alike, _NEAR) for full in sorted(alike[name])][:_NEAR]
    hint = f"; perhaps {', '.join(near)}" if near else ""
    where = "" if "/" in text else " in any namespace"
    return f"no {kind} {text!r}{where}{hint} (`ringfence {'workloads' if kind == 'pod' else 'services'}` lists them)"


def _host_and_port(text: str) -> tuple[str, int | None]:
    """``HOST:PORT``, ``[IPV6]:PORT``, or a host alone; raises UnknownPlace."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise UnknownPlace(f"{text!r} is no address: write [fd00::1]:80")
        number = rest[1:]
    elif text.count(":") > 1:
        return text, None  # an IPv6 address without brackets has no port
    else:
        host, _, number = text.partition(":")
    if not number:
        return host, None
    if not number.isascii() or not number.isdigit() or not 0 < int(number[:6]) < 65536:
        raise UnknownPlace(f"{number!r} is no port: 1 to 65535")
    return host, int(number)


def _ip(text: str) -> str | None:
    """The canonical address, None if it is none."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
