"""The registry: a pure store that answers the data path's questions in constant time.

Sans-I/O: sources feed it through ``apply``, from one thread; whoever asks,
asks from that thread too.  Nothing in here waits, logs or fails: objects were
checked when they were parsed, and contradictions between them are settled by
rules that do not depend on the order of arrival, and reported by ``conflicts``.
"""

from collections.abc import Iterator, Mapping
from typing import Final, TypeVar, cast

from ca.manifests import (
    AuthorizationPolicy,
    EndpointSlice,
    ExternalService,
    MachineWorkload,
    Namespace,
    Node,
    PeerAuthentication,
    Pod,
    Service,
    TCPRoute,
    Traffic,
    TrafficPolicy,
)
from node_agent.model import Endpoint, EndpointAddress, MtlsMode, ObjectName, ServicePort, Workload
from node_agent.registry.authorization_policies import AuthorizationPolicies
from node_agent.registry.changes import Changes, RegistryObject, ResolvedName, Update
from node_agent.registry.dangling import policies_without_service, routes_to_nowhere
from node_agent.registry.egress import EgressPods
from node_agent.registry.external import ExternalKey, ExternalServices, Place
from node_agent.registry.machines import Machines
from node_agent.registry.networks import PodNetworks
from node_agent.registry.peer_authentication import PeerAuthentications
from node_agent.registry.services import Services
from node_agent.registry.tcp_routes import Split, TcpRoutes
from node_agent.registry.traffic_policies import TrafficPolicies
from node_agent.registry.workloads import WorkloadChange, Workloads

DEFAULT_ROOT_NAMESPACE: Final = "istio-system"  # Istio's, so that existing PeerAuthentications mean the same

K = TypeVar(
    "K",
    Namespace,
    Node,
    Pod,
    Service,
    EndpointSlice,
    PeerAuthentication,
    AuthorizationPolicy,
    TrafficPolicy,
    TCPRoute,
    ResolvedName,
)


class Registry:
    """Workloads, services, endpoints and mTLS modes.

    Args:
        trust_domain: of every identity that workloads get.
        root_namespace: where a PeerAuthentication without selector, and a default of the egress, are the mesh's.
    """

    def __init__(self, trust_domain: str, *, root_namespace: str = DEFAULT_ROOT_NAMESPACE) -> None:
        self._workloads = Workloads(trust_domain)
        self._machines = Machines(self._workloads.pod)
        self._services = Services(self._workloads)
        self._egress = EgressPods(root_namespace)
        self._external = ExternalServices(self._egress)
        self._networks = PodNetworks()
        self._nodes: dict[str, Node] = {}
        self._peer_authentications = PeerAuthentications(root_namespace)
        self._authorization_policies = AuthorizationPolicies()
        self._traffic_policies = TrafficPolicies()
        self._tcp_routes = TcpRoutes()
        self._same_node: dict[str, str] = {}  # by namespace, of those that say something
        self._balance: dict[str, str] = {}
        self._revision = 0

    @property
    def revision(self) -> int:
        """Grows by one with each ``apply``."""
        return self._revision

    def apply(self, update: Update) -> Changes:
        """Take in one step of a source; costs what it touches, not what there is.

        A key that is both deleted and upserted is upserted.  Objects that are
        equal to what is known change nothing.
        """
        by_kind: dict[str, dict[ObjectName, RegistryObject | None]] = {}
        for key in update.deletes:
            by_kind.setdefault(key.kind, {})[ObjectName(key.namespace, key.name)] = None
        for each in update.upserts:
            kind, namespace, name = each.key
            by_kind.setdefault(kind, {})[ObjectName(namespace, name)] = each
        machines = cast("Mapping[ObjectName, MachineWorkload | None]", by_kind.get("Workload", {}))
        pods = self._machines.merge(_of(Pod, by_kind), machines)
        namespaces = {name.name: each for name, each in _of(Namespace, by_kind).items()}
        nodes = {name.name: each for name, each in _of(Node, by_kind).items()}
        peer_authentications = _of(PeerAuthentication, by_kind)

        self._put_nodes(nodes)
        self._peer_authentications.apply(peer_authentications)
        # Services first: then each new pod is matched by index, and no service has to search all pods.
        services, external = _by_place(by_kind)
        services_changed, services_removed = self._services.apply(services, _of(EndpointSlice, by_kind))
        names = {name.name: each for name, each in _of(ResolvedName, by_kind).items()}
        external_changed, external_removed = self._external.apply(external, names)
        services_changed |= external_changed
        services_removed |= external_removed
        still_there = {each for each in services_removed if self.is_service(each)}  # as another kind of service
        services_changed |= still_there
        services_removed -= still_there
        workload_changes = self._workloads.apply(pods, namespaces, nodes)
        services_changed |= self._services.workloads_changed(workload_changes)
        if self._egress.apply(namespaces, workload_changes):
            services_changed |= self._external.egress_changed()
        about = self._traffic_policies.apply(_of(TrafficPolicy, by_kind)) | self._tcp_routes.apply(
            _of(TCPRoute, by_kind)
        )
        services_changed |= {each for each in about if self.is_service(each)}
        self._revision += 1
        return self._changes(
            workload_changes,
            services_changed,
            services_removed,
            mtls_changed=bool(peer_authentications),
            same_node_changed=_put_asked(
                self._same_node, {name: each.same_node if each is not None else "" for name, each in namespaces.items()}
            ),
            balance_changed=_put_asked(
                self._balance, {name: each.balance if each is not None else "" for name, each in namespaces.items()}
            ),
            policies=self._authorization_policies.apply(_of(AuthorizationPolicy, by_kind)),
        )

    def nodes(self) -> tuple[Node, ...]:
        """Every node that has a manifest."""
        return tuple(self._nodes.values())

    def workload_at(self, ip: str) -> Workload | None:
        """The workload that has this address (canonical text); pods on the node's network have none."""
        return self._workloads.at(ip)

    def workload_named(self, name: ObjectName) -> Workload | None:
        return self._workloads.named(name)

    def workloads_on(self, node: str) -> tuple[Workload, ...]:
        """Every workload scheduled on the node, by name; not cached."""
        return self._workloads.on(node)

    def workloads(self) -> Iterator[Workload]:
        """Every workload, in no order; not to be held across ``apply``."""
        return iter(self._workloads)

    def service_at(self, ip: str, port: int) -> ServicePort | None:
        """The service port behind a cluster IP and port."""
        return self._services.at(ip, port)

    def is_service_ip(self, ip: str) -> bool:
        """Whether this is a cluster IP, whatever the port."""
        return self._services.is_service_ip(ip)

    def service_named(self, name: ObjectName) -> Service | None:
        return self._services.named(name)

    def is_service(self, name: ObjectName) -> bool:
        """Whether there is a service of this name, inside or outside of the mesh."""
        return self._services.named(name) is not None or name in self._external

    def service_ports(self, name: ObjectName) -> tuple[ServicePort, ...]:
        """The TCP ports of a service, in the order of its manifest; empty if there is no such service."""
        return self._services.ports(name) + self._external.ports(name)

    def services(self) -> Iterator[Service]:
        """Every service, in no order; not to be held across ``apply``."""
        return iter(self._services)

    def endpoints(self, port: ServicePort, ip_version: int) -> tuple[Endpoint, ...]:
        """Who serves a service port on IPv4 (4) or IPv6 (6), those that are not ready included and flagged.

        The very same tuple until something in it changes.
        """
        if port.is_external:
            return self._external.endpoints(port, ip_version)
        return self._services.endpoints(port, ip_version)

    def external_at(self, ip: str, port: int) -> Place | None:
        """The service outside that an address and port are; ask ``service_at`` and ``workload_at`` first.

        What is said of an address in a pod network is not believed: DNS may say anything.
        """
        if not self._external or ip in self._networks:
            return None
        return self._external.at(ip, port)

    def external_port(self, kind: str, name: ObjectName, number: int) -> ServicePort | None:
        """The port of a service outside by its number."""
        return self._external.port(kind, name, number)

    def is_egress_for(self, workload: Workload, port: ServicePort) -> bool:
        """Whether a workload is to connect to a service outside on behalf of others."""
        spec = self._external.spec(port)
        return spec is not None and any(each.uid == workload.uid for each in self._egress.of(spec))

    def is_address_of(self, port: ServicePort, address: EndpointAddress) -> bool:
        """Whether a service outside has this address now, or had it a moment ago."""
        return address.ip not in self._networks and self._external.has_address(port, address)

    def egress_nodes(self, service: ExternalService) -> tuple[str, ...]:
        """The nodes that connections to a service outside leave through; none for directly."""
        return self._egress.nodes_of(service)

    def egress_problems(self) -> Iterator[str]:
        """One line for each service outside whose egress is not there."""
        for each in sorted(self._external, key=lambda each: each.key):
            yield from self._egress.problems(each, self._nodes)

    def external_services(self) -> Iterator[ExternalService]:
        """Every service outside of the mesh, in no order; not to be held across ``apply``."""
        return iter(self._external)

    def external_names(self) -> frozenset[str]:
        """Every DNS name that services outside need."""
        return self._external.names()

    def users_of(self, name: str) -> list[str]:
        """Which services need a DNS name, for people."""
        return self._external.users(name)

    def split(self, port: ServicePort) -> Split | None:
        """How a TCPRoute splits the connections to a service port, None if none does."""
        return self._tcp_routes.split(port)

    def service_port(self, service: ObjectName, port: int) -> ServicePort | None:
        """The port of a service by its number."""
        return self._services.port(service, port)

    def traffic(self, port: ServicePort) -> Traffic:
        """What its TrafficPolicy, or the defaults, want of connections to a service port.

        The very same value until a policy of the service changes.
        """
        return self._traffic_policies.traffic(port)

    def traffic_policy(self, port: ServicePort) -> TrafficPolicy | None:
        """The TrafficPolicy that is in force for a service port."""
        return self._traffic_policies.policy(port)

    def faults(self) -> Iterator[str]:
        """One line for each TrafficPolicy that disturbs connections, or is about nothing, each TCPRoute that leads
        to nowhere, and each AuthorizationPolicy that can not be judged as it says.
        """
        yield from self._authorization_policies.faults()
        for policy in self._traffic_policies.in_force():
            service = ObjectName(policy.namespace, policy.service)
            if any(each.percent for each in policy.traffic.faults) and self.service_ports(service):
                port = "" if policy.port is None else f":{policy.port}"
                name = ObjectName(policy.namespace, policy.name)
                yield f"faults are injected into connections to {service}{port} (TrafficPolicy {name})"
        yield from policies_without_service(self._traffic_policies, self._ports_of)
        yield from routes_to_nowhere(self._tcp_routes, self._ports_of)

    def _ports_of(self, kind: str, name: ObjectName) -> tuple[ServicePort, ...] | None:
        found = tuple(each for each in self.service_ports(name) if each.kind == kind)
        return found if found or (kind == "Service" and self._services.named(name) is not None) else None

    def in_pod_network(self, ip: str) -> bool:
        """Whether the address is in some node's podCIDRs: a pod's, known or not."""
        return ip in self._networks

    def authorization_policies(self) -> Iterator[AuthorizationPolicy]:
        """Every AuthorizationPolicy, in no order; not to be held across ``apply``."""
        return iter(self._authorization_policies)

    def mtls_mode(self, workload: Workload, port: int) -> MtlsMode:
        """The PeerAuthentication mode in force for the workload's own port."""
        return self._peer_authentications.mode(workload, port)

    def conflicts(self) -> tuple[str, ...]:
        """One line for each address that several objects claim, and who holds it."""
        return (
            *self._workloads.conflicts(),
            *self._machines.conflicts(),
            *self._services.conflicts(),
            *self._external.conflicts(),
            *self._without_effect(),
            *self._traffic_policies.conflicts(),
            *self._tcp_routes.conflicts(),
        )

    def _without_effect(self) -> Iterator[str]:
        """One line for each virtual address outside that the mesh itself has."""
        for each in sorted(self._external, key=lambda each: each.key):
            for ip in each.addresses:
                whose = "a cluster IP" if self.is_service_ip(ip) else "in a pod network" if ip in self._networks else ""
                if whose:
                    yield f"address {ip} of {each.key} is {whose}, and without effect; give it another"

    def same_node(self, namespace: str, service: ObjectName | None) -> str:
        """``lane`` or ``tunnel``: what a service, or else the namespace, asks for; empty if neither does."""
        found = None if service is None else self._services.named(service)
        return (found.same_node if found is not None else "") or self._same_node.get(namespace, "")

    def balance(self, service: ObjectName) -> str:
        """``connect`` or ``agent``: who is to choose the endpoints of a service that is not in the mesh; empty if
        neither it nor its namespace says.
        """
        found = self._services.named(service)
        return (found.balance if found is not None else "") or self._balance.get(service.namespace, "")

    def _put_nodes(self, nodes: Mapping[str, Node | None]) -> None:
        for name, node in nodes.items():
            if (before := self._nodes.pop(name, None)) is not None:
                self._networks.remove(before)
            if node is not None:
                self._nodes[name] = node
                self._networks.add(node)

    def _changes(
        self,
        workloads: list[WorkloadChange],
        changed: set[ObjectName],
        removed: set[ObjectName],
        *,
        mtls_changed: bool,
        same_node_changed: bool,
        balance_changed: bool,
        policies: Mapping[ObjectName, AuthorizationPolicy | None],
    ) -> Changes:
        gone: list[Workload] = []
        new: list[Workload] = []
        other: list[Workload] = []
        for before, after in workloads:
            if before is not None and after is not None and _same_incarnation(before, after):
                other.append(after)
                continue
            if before is not None:
                self._peer_authentications.forget(before.name)
                gone.append(before)
            if after is not None:
                new.append(after)
        return Changes(
            revision=self._revision,
            workloads_added=tuple(new),
            workloads_removed=tuple(gone),
            workloads_changed=tuple(other),
            services_changed=frozenset(changed),
            services_removed=frozenset(removed),
            mtls_changed=mtls_changed,
            same_node_changed=same_node_changed,
            balance_changed=balance_changed,
            policies=policies,
        )


def _put_asked(known: dict[str, str], said: Mapping[str, str]) -> bool:
    """Take in what namespaces ask for; returns whether it is something else than before."""
    changed = {name: text for name, text in said.items() if text != known.get(name, "")}
    for name, text in changed.items():
        known.pop(name, None)
        if text:
            known[name] = text
    return bool(changed)


def _same_incarnation(before: Workload, after: Workload) -> bool:
    """Whether captured sockets, tunnels and certificates of the one serve the other."""
    return (
        before.uid == after.uid
        and before.addresses == after.addresses
        and before.identity == after.identity
        and before.node == after.node
        and before.enrolled == after.enrolled
    )


def _by_place(
    by_kind: Mapping[str, Mapping[ObjectName, RegistryObject | None]],
) -> tuple[Mapping[ObjectName, Service | None], Mapping[ExternalKey, ExternalService | None]]:
    """Services inside and outside of the mesh.  One of type ExternalName becomes another type by a new version."""
    inside: dict[ObjectName, Service | None] = {}
    outside: dict[ExternalKey, ExternalService | None] = {}
    for name, each in by_kind.get("Service", {}).items():
        inside[name] = each if isinstance(each, Service) else None
        outside[ExternalKey("Service", name)] = each if isinstance(each, ExternalService) else None
    for name, each in by_kind.get("ServiceEntry", {}).items():
        outside[ExternalKey("ServiceEntry", name)] = each if isinstance(each, ExternalService) else None
    return inside, outside


def _of(
    kind: type[K], by_kind: Mapping[str, Mapping[ObjectName, RegistryObject | None]]
) -> Mapping[ObjectName, K | None]:
    # The key of an object names its class: no need to look at each.
    return cast("Mapping[ObjectName, K | None]", by_kind.get(kind.__name__, {}))
