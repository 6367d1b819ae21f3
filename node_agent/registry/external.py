"""Services outside of the mesh: which one a connection to an address is for, and where it may go.

A service claims, on each of its ports, its virtual addresses, its endpoints'
addresses, and those that its host names have or had a moment ago.  What has
nothing but host names is one pool for each host: a connection to an address of
one must not end at another.

Several services may claim an address and port, as hosts of one content network
do.  The oldest holds it and gives it its name; but nobody can tell which of them
the connection is for, so it goes only to addresses that they all share.

Where connections leave through egress pods (egress.py), an endpoint is an address
and the pod that it is reached through, each pair one; with no such pod there are
none.  Of several services one with egress goes first, however old: what may be
for it must not leave directly.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from ca.manifests.external import ExternalPort, ExternalService, is_ip
from node_agent.model import Endpoint, EndpointAddress, ObjectName, ServicePort, join_host_port
from node_agent.registry.changes import ResolvedName
from node_agent.registry.claims import Claims
from node_agent.registry.egress import EgressPods

_NOTHING: Final = ResolvedName(name="")


class ExternalKey(NamedTuple):
    """``kind`` is Service or ServiceEntry: they may have the same name."""

    kind: str
    name: ObjectName


class Place(NamedTuple):
    """What an address and port are: a port of a service, and where the connection may go."""

    service: ServicePort
    endpoints: tuple[Endpoint, ...]


class _Pool:
    """One host of a service, or all its endpoints; identity counts, not equality."""

    __slots__ = ("addresses", "claimed", "endpoints", "host", "order", "state")

    def __init__(self, state: "_State", order: int, host: str | None) -> None:
        self.state = state
        self.order = order
        self.host = host
        self.claimed: dict[str, int] = {}  # address and port: the port
        self.addresses: dict[tuple[int, int], tuple[EndpointAddress, ...]] = {}  # (port, IP version)
        self.endpoints: dict[tuple[int, int], tuple[Endpoint, ...]] = {}  # (port, IP version)


class _State:
    """A service, and what it is made of now."""

    __slots__ = ("key", "pools", "ports", "spec")

    def __init__(self, key: ExternalKey, spec: ExternalService) -> None:
        self.key = key
        self.spec = spec
        self.ports = {
            each.port: ServicePort(service=key.name, port=each.port, name=each.name, kind=spec.kind, is_external=True)
            for each in spec.ports
        }
        hosts: tuple[str | None, ...] = (None,) if spec.endpoints else spec.hosts
        self.pools = [_Pool(self, order, host) for order, host in enumerate(hosts)]


class ExternalServices:
    """Every service outside; changed only through ``apply`` and ``egress_changed``."""

    def __init__(self, egress: EgressPods) -> None:
        self._egress = egress
        self._states: dict[ExternalKey, _State] = {}
        self._users: dict[str, set[ExternalKey]] = {}  # of each DNS name
        self._resolved: dict[str, ResolvedName] = {}
        self._claims: Claims[_Pool] = Claims(self._first)
        self._shared: dict[str, tuple[Endpoint, ...]] = {}  # for contested addresses, as far as they were asked for

    def apply(
        self, services: Mapping[ExternalKey, ExternalService | None], names: Mapping[str, ResolvedName | None]
    ) -> tuple[set[ObjectName], set[ObjectName]]:
        """Take in what is new (or None for gone); returns the services changed, and those gone or replaced."""
        touched: set[ExternalKey] = set()
        removed: set[ObjectName] = set()
        for name, resolved in names.items():
            if resolved is None:
                self._resolved.pop(name, None)
            else:
                self._resolved[name] = resolved
            touched |= self._users.get(name, set())
        for key, spec in services.items():
            before = self._states.get(key)
            if before is not None and before.spec != spec:
                self._remove(before)
                removed.add(key.name)
            if spec is not None and (before is None or before.spec != spec):
                self._states[key] = _State(key, spec)
                for name in spec.names:
                    self._users.setdefault(name, set()).add(key)
                touched.add(key)
        touched &= self._states.keys()
        for key in touched:
            for pool in self._states[key].pools:
                self._rebuild(pool)
        if touched or removed:
            self._shared.clear()
        return {key.name for key in touched}, removed

    def egress_changed(self) -> set[ObjectName]:
        """Follow the egress pods and the defaults; returns the services whose endpoints may differ."""
        touched: set[ObjectName] = set()
        for state in self._states.values():
            before = [pool.endpoints for pool in state.pools]
            for pool in state.pools:
                for address in pool.claimed:  # who comes first depends on whether it has egress
                    self._claims.remove(address, pool)
                pool.claimed = {}
                self._rebuild(pool)
            if before != [pool.endpoints for pool in state.pools]:
                touched.add(state.key.name)
        self._shared.clear()
        return touched

    def port(self, kind: str, name: ObjectName, number: int) -> ServicePort | None:
        """The port of a service by its number."""
        state = self._states.get(ExternalKey(kind, name))
        return None if state is None else state.ports.get(number)

    def spec(self, port: ServicePort) -> ExternalService | None:
        """What declares the service of a port."""
        state = self._states.get(ExternalKey(port.kind, port.service))
        return None if state is None else state.spec

    def has_address(self, port: ServicePort, address: EndpointAddress) -> bool:
        """Whether connections to a service port may go to an address, which it has now or had a moment ago."""
        state = self._states.get(ExternalKey(port.kind, port.service))
        if state is None:
            return False
        wanted = state.ports.get(port.port)
        if wanted is None or address.ip in state.spec.addresses:
            return False
        spec = next(each for each in state.spec.ports if each.port == port.port)
        asked = join_host_port(*address)
        return any(
            pool.claimed.get(asked) == port.port or address in self._addresses(pool, spec, and_recent=True)
            for pool in state.pools
        )

    def at(self, ip: str, port: int) -> Place | None:
        """What a connection to this address and port is for."""
        address = join_host_port(ip, port)
        pool = self._claims.holders.get(address)
        if pool is None:
            return None
        version = _version(ip)
        endpoints = pool.endpoints.get((port, version), ())
        if ip not in pool.state.spec.addresses and address in self._claims.contested:
            endpoints = self._shared.get(address) or self._share(address, ip, port, pool)
        return Place(pool.state.ports[port], endpoints)

    def endpoints(self, port: ServicePort, ip_version: int) -> tuple[Endpoint, ...]:
        """All endpoints of a service port, of every host."""
        state = self._states.get(ExternalKey(port.kind, port.service))
        if state is None:
            return ()
        if len(state.pools) == 1:
            return state.pools[0].endpoints.get((port.port, ip_version), ())
        every = (each for pool in state.pools for each in pool.endpoints.get((port.port, ip_version), ()))
        return tuple(dict.fromkeys(every))

    def ports(self, name: ObjectName) -> tuple[ServicePort, ...]:
        return tuple(
            port
            for kind in ("Service", "ServiceEntry")
            if (state := self._states.get(ExternalKey(kind, name))) is not None
            for port in state.ports.values()
        )

    def names(self) -> frozenset[str]:
        """Every DNS name that has to be resolved."""
        return frozenset(self._users)

    def users(self, name: str) -> list[str]:
        """Who needs a DNS name, for people."""
        return sorted(f"{key.kind} {key.name}" for key in self._users.get(name, ()))

    def __iter__(self) -> Iterator[ExternalService]:
        return (state.spec for state in self._states.values())

    def __len__(self) -> int:
        return len(self._states)

    def __contains__(self, name: ObjectName) -> bool:
        return any(ExternalKey(kind, name) in self._states for kind in ("Service", "ServiceEntry"))

    def conflicts(self) -> Iterator[str]:
        """One line for each address and port that several services claim."""
        for address, claimants in sorted(self._claims.contested.items()):
            holder = self._claims.holders[address].state.key
            others = sorted({each.state.key for each in claimants} - {holder})
            if others:
                names = ", ".join(f"{each.kind} {each.name}" for each in others)
                yield (
                    f"{address} is claimed by {holder.kind} {holder.name} and {names}; "
                    f"{holder.kind} {holder.name} is in force"
                )

    def _remove(self, state: _State) -> None:
        for pool in state.pools:
            for address in pool.claimed:
                self._claims.remove(address, pool)
        del self._states[state.key]
        for name in state.spec.names:
            users = self._users[name]
            users.discard(state.key)
            if not users:
                del self._users[name]

    def _rebuild(self, pool: _Pool) -> None:
        spec = pool.state.spec
        endpoints: dict[tuple[int, int], tuple[Endpoint, ...]] = {}
        found: dict[tuple[int, int], tuple[EndpointAddress, ...]] = {}
        for port in spec.ports:
            every = self._addresses(pool, port)
            for version in (4, 6):
                of_version = found[port.port, version] = tuple(ip for ip in every if _version(ip.ip) == version)
                made = self._made(spec, of_version)
                before = pool.endpoints.get((port.port, version))
                endpoints[port.port, version] = before if before == made else made
        pool.endpoints = endpoints
        pool.addresses = found
        addresses = dict.fromkeys((*spec.addresses, *self._reachable_by(pool)))
        claimed = {join_host_port(ip, port.port): port.port for port in spec.ports for ip in addresses}
        for gone in pool.claimed.keys() - claimed.keys():
            self._claims.remove(gone, pool)
        for new in claimed.keys() - pool.claimed.keys():
            self._claims.add(new, pool)
        pool.claimed = claimed

    def _addresses(self, pool: _Pool, port: ExternalPort, *, and_recent: bool = False) -> dict[EndpointAddress, None]:
        """Where connections to a port go, in order."""
        found: dict[EndpointAddress, None] = {}
        if pool.host is not None:
            for ip in self._ips(pool.host, and_recent=and_recent):
                found[EndpointAddress(ip, port.target)] = None
        for host, ports in pool.state.spec.endpoints if pool.host is None else ():
            number = next((each.port for each in ports if each.name == port.name), port.target)
            for ip in (host,) if is_ip(host) else self._ips(host, and_recent=and_recent):
                found[EndpointAddress(ip, number)] = None
        return found

    def _ips(self, host: str, *, and_recent: bool) -> tuple[str, ...]:
        resolved = self._name(host)
        return resolved.addresses + resolved.recent if and_recent else resolved.addresses

    def _made(self, spec: ExternalService, addresses: Iterable[EndpointAddress]) -> tuple[Endpoint, ...]:
        """The endpoints at these addresses: directly, or each through each egress pod that has the IP version."""
        if not self._egress.nodes_of(spec):
            return tuple(Endpoint(address=each, workload=None) for each in addresses)
        pods = self._egress.of(spec)
        return tuple(
            Endpoint(address=each, workload=None, egress=pod, ready=pod.ready)
            for each in addresses
            for pod in pods
            if any(_version(own) == _version(each.ip) for own in pod.addresses)
        )

    def _first(self, claimants: list[_Pool]) -> _Pool:
        """Who holds an address: one with egress, then the oldest."""

        def rank(pool: _Pool) -> tuple[bool, str, ExternalKey, int]:
            spec = pool.state.spec
            return (not self._egress.nodes_of(spec), spec.created, pool.state.key, pool.order)

        return min(claimants, key=rank)

    def _reachable_by(self, pool: _Pool) -> Iterator[str]:
        """The addresses that applications may know the pool by, besides virtual ones."""
        spec = pool.state.spec
        if pool.host is not None:
            hosts: Iterable[str] = (pool.host,)
        else:
            hosts = (*spec.hosts, *(each.host for each in spec.endpoints))
        for host in hosts:
            if is_ip(host):
                yield host
            else:
                resolved = self._name(host)
                yield from resolved.addresses
                yield from resolved.recent

    def _name(self, name: str) -> ResolvedName:
        return self._resolved.get(name, _NOTHING)

    def _share(self, address: str, ip: str, port: int, pool: _Pool) -> tuple[Endpoint, ...]:
        rivals = self._claims.contested[address]
        asked = (port, _version(ip))
        shared = [
            each
            for each in pool.addresses.get(asked, ())
            if all(each in rival.addresses.get(asked, ()) for rival in rivals)
        ]
        found = self._made(pool.state.spec, shared or [EndpointAddress(ip, port)])
        self._shared[address] = found
        return found


def _version(ip: str) -> int:
    return 6 if ":" in ip else 4
