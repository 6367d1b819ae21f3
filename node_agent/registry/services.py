"""Services: by cluster IP and port, with the endpoints behind each port.

Endpoints of a service come from its EndpointSlices if it has any, otherwise
from the workloads that its selector matches.  The tuple of a service port and
IP family is built when it is first asked for, kept until something that it was
built from changes, and then dropped for that service alone.

To know what was built from a pod, two indexes: the members of each service
(selector), and for slices the services whose built tuples hold an address.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from ca.manifests import EndpointSlice, Service, ServicePortSpec
from node_agent.model import Endpoint, EndpointAddress, ObjectName, ServicePort, Workload
from node_agent.registry.claims import Claims
from node_agent.registry.workloads import WorkloadChange, Workloads


class _Selector(NamedTuple):
    """The label pair that an index entry stands for."""

    namespace: str
    key: str
    value: str


class _ServiceState:
    """A service, what its endpoints are made from, and what is made so far."""

    __slots__ = ("also_watched", "built", "indexed_by", "members", "name", "ports", "spec", "specs")

    def __init__(self, spec: Service) -> None:
        self.name = ObjectName(spec.namespace, spec.name)
        self.spec = spec
        self.ports: dict[int, ServicePort] = {
            each.port: ServicePort(
                service=self.name, port=each.port, name=each.name, load_balancing=spec.load_balancing
            )
            for each in spec.ports
        }
        self.specs: dict[int, ServicePortSpec] = {each.port: each for each in spec.ports}
        self.members: set[ObjectName] = set()
        self.indexed_by: _Selector | None = None
        self.built: dict[tuple[int, int], tuple[Endpoint, ...]] = {}  # (port, ip version)
        self.also_watched: list[str] = []  # keys in Services._users besides the addresses in ``built``


def _oldest(claimants: list[_ServiceState]) -> _ServiceState:
    return min(claimants, key=lambda state: (state.spec.created, state.name))


class Services:
    """Every service; changed only through ``apply`` and ``workloads_changed``."""

    def __init__(self, workloads: Workloads) -> None:
        self._workloads = workloads
        self._states: dict[ObjectName, _ServiceState] = {}
        self._slices: dict[ObjectName, dict[str, EndpointSlice]] = {}  # service: slice name
        self._service_of_slice: dict[ObjectName, ObjectName] = {}
        self._by_selector: dict[_Selector, set[ObjectName]] = {}
        # Services built from slices, by each address in them, or by the name of a pod that is not known yet.
        self._users: dict[str, tuple[ObjectName, ...]] = {}
        self._claims: Claims[_ServiceState] = Claims(_oldest)
        self._holders = self._claims.holders

    def at(self, ip: str, port: int) -> ServicePort | None:
        holder = self._holders.get(ip)
        return holder.ports.get(port) if holder is not None else None

    def is_service_ip(self, ip: str) -> bool:
        return ip in self._holders

    def named(self, name: ObjectName) -> Service | None:
        state = self._states.get(name)
        return state.spec if state is not None else None

    def ports(self, name: ObjectName) -> tuple[ServicePort, ...]:
        state = self._states.get(name)
        return tuple(state.ports.values()) if state is not None else ()

    def port(self, name: ObjectName, number: int) -> ServicePort | None:
        state = self._states.get(name)
        return state.ports.get(number) if state is not None else None

    def __iter__(self) -> Iterator[Service]:
        return (state.spec for state in self._states.values())

    def __len__(self) -> int:
        return len(self._states)

    def conflicts(self) -> Iterator[str]:
        """One line for each cluster IP that several services claim."""
        for ip, claimants in sorted(self._claims.contested.items()):
            holder = self._holders[ip]
            others = ", ".join(sorted(str(each.name) for each in claimants if each is not holder))
            yield f"cluster IP {ip} is claimed by services {holder.name} and {others}; {holder.name} is in force"

    def endpoints(self, port: ServicePort, ip_version: int) -> tuple[Endpoint, ...]:
        state = self._states.get(port.service)
        if state is None:
            return ()
        built = state.built.get((port.port, ip_version))
        return built if built is not None else self._build(state, port.port, ip_version)

    def apply(
        self, services: Mapping[ObjectName, Service | None], slices: Mapping[ObjectName, EndpointSlice | None]
    ) -> tuple[set[ObjectName], set[ObjectName]]:
        """Take in what is new (or None for gone); returns the services changed and removed."""
        changed: set[ObjectName] = set()
        removed: set[ObjectName] = set()
        for name, spec in services.items():
            before = self._states.get(name)
            if spec == (before.spec if before is not None else None):
                continue
            if before is not None:
                self._remove(before)
            if spec is not None:
                self._add(_ServiceState(spec))
            (removed if spec is None else changed).add(name)
        for name, each in slices.items():
            changed |= self._put_slice(name, each)
        return changed & self._states.keys(), removed

    def workloads_changed(self, changes: Iterable[WorkloadChange]) -> set[ObjectName]:
        """Follow the workloads; returns the services whose endpoints may differ."""
        touched: set[ObjectName] = set()
        for before, after in changes:
            was = self._selecting(before) if before is not None else set()
            is_now = self._selecting(after) if after is not None else set()
            for each in (before, after):
                if each is None:
                    continue
                for service in was - is_now:
                    self._states[service].members.discard(each.name)
                for service in is_now - was:
                    self._states[service].members.add(each.name)
                for key in (*each.addresses, str(each.name)):
                    touched.update(self._users.get(key, ()))
            touched |= {service for service in was | is_now if service not in self._slices}
        for service in touched:
            self._drop_built(self._states[service])
        return touched

    def _add(self, state: _ServiceState) -> None:
        self._states[state.name] = state
        for ip in state.spec.cluster_ips:
            self._claims.add(ip, state)
        if not state.spec.selector:
            return
        pairs = [_Selector(state.name.namespace, key, value) for key, value in state.spec.selector.items()]
        # The rarest pair as the index: a chart's common labels would gather all its services in one entry.
        state.indexed_by = min(pairs, key=lambda pair: len(self._by_selector.get(pair, ())))
        self._by_selector.setdefault(state.indexed_by, set()).add(state.name)
        wanted = state.spec.selector.items()
        state.members.update(
            each.name for each in self._workloads.in_namespace(state.name.namespace) if wanted <= each.labels.items()
        )

    def _remove(self, state: _ServiceState) -> None:
        self._drop_built(state)
        del self._states[state.name]
        for ip in state.spec.cluster_ips:
            self._claims.remove(ip, state)
        if state.indexed_by is not None:
            index = self._by_selector[state.indexed_by]
            index.discard(state.name)
            if not index:
                del self._by_selector[state.indexed_by]

    def _put_slice(self, name: ObjectName, each: EndpointSlice | None) -> set[ObjectName]:
        service = ObjectName(each.namespace, each.service) if each is not None else None
        touched = set()
        old = self._service_of_slice.pop(name, None)
        if old is not None:
            touched.add(old)
            del self._slices[old][name.name]
            if not self._slices[old]:
                del self._slices[old]
        if each is not None and service is not None:
            touched.add(service)
            self._service_of_slice[name] = service
            self._slices.setdefault(service, {})[name.name] = each
        for touched_service in touched & self._states.keys():
            self._drop_built(self._states[touched_service])
        return touched

    def _selecting(self, workload: Workload) -> set[ObjectName]:
        """The services whose selector matches the workload."""
        namespace = workload.name.namespace
        return {
            service
            for key, value in workload.labels.items()
            for service in self._by_selector.get(_Selector(namespace, key, value), ())
            if self._states[service].spec.selector.items() <= workload.labels.items()
        }

    def _drop_built(self, state: _ServiceState) -> None:
        for endpoints in state.built.values():
            for each in endpoints:
                self._leave(each.address.ip, state.name)
        for key in state.also_watched:
            self._leave(key, state.name)
        state.built = {}
        state.also_watched = []

    def _join(self, key: str, service: ObjectName) -> None:
        users = self._users.get(key, ())
        if service not in users:
            self._users[key] = (*users, service)

    def _leave(self, key: str, service: ObjectName) -> None:
        users = self._users.get(key, ())
        if users == (service,):
            del self._users[key]
        elif service in users:
            self._users[key] = tuple(each for each in users if each != service)

    def _build(self, state: _ServiceState, port: int, ip_version: int) -> tuple[Endpoint, ...]:
        spec = state.specs.get(port)
        if spec is None:
            return ()
        slices = self._slices.get(state.name)
        if slices is not None:
            found = self._from_slices(state, slices, spec, ip_version)
        else:
            found = self._from_members(state, spec, ip_version)
        state.built[port, ip_version] = built = tuple(found)
        return built

    def _from_slices(
        self, state: _ServiceState, slices: Mapping[str, EndpointSlice], spec: ServicePortSpec, ip_version: int
    ) -> Iterable[Endpoint]:
        """EndpointSlice reference: "clients must ... deduplicate" what slices share."""
        found: dict[EndpointAddress, Endpoint] = {}
        for name in sorted(slices):
            each = slices[name]
            target = next((slice_port.port for slice_port in each.ports if slice_port.name == spec.name), None)
            if each.ip_version != ip_version or target is None:
                continue
            for ip, ready, pod in each.endpoints:
                self._join(ip, state.name)
                workload = self._workloads.at(ip)
                if pod:
                    pod_name = ObjectName(each.namespace, pod)
                    named = self._workloads.named(pod_name)
                    if named is None:
                        self._join(str(pod_name), state.name)
                        state.also_watched.append(str(pod_name))
                    if not _agree(named, workload, ip):
                        state.also_watched.append(ip)
                        continue
                    workload = named
                address = EndpointAddress(ip, target)
                if address not in found or (ready and not found[address].ready):
                    found[address] = Endpoint(address=address, workload=workload, ready=ready)
        return found.values()

    def _from_members(self, state: _ServiceState, spec: ServicePortSpec, ip_version: int) -> Iterator[Endpoint]:
        for name in sorted(state.members):
            workload = self._workloads.named(name)
            if workload is None:
                continue
            target = spec.target if isinstance(spec.target, int) else workload.named_ports.get(spec.target)
            ip = next((each for each in workload.addresses if (":" in each) == (ip_version == 6)), None)
            if target is None or ip is None:
                continue
            holder = self._workloads.at(ip)
            if holder is not None and holder is not workload:
                continue  # another pod has this address by now
            ready = workload.ready or state.spec.publish_not_ready
            yield Endpoint(address=EndpointAddress(ip, target), workload=workload, ready=ready)


def _agree(named: Workload | None, holder: Workload | None, ip: str) -> bool:
    """Whether the pod that a slice names is who has the address.

    A slice that lags behind the pods must not lead a client of one service to
    the pod that took over the address.  A pod that is not known yet is an
    endpoint without a workload, unless the address is known to be another's.
    """
    if named is None:
        return holder is None
    return ip in named.addresses and (holder is None or holder is named)
