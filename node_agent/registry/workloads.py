"""Pods as workloads: by name, by address, by node.

A pod is a workload once it has an address and until its containers have ended
(phase Succeeded or Failed) or it is deleted.  One that is terminating is still
a workload, not ready, and still serves the connections it has.

Two pods that claim one address: the one that is not terminating wins, then the
newest (creationTimestamp, then uid).  Pods on the node's own network are known
by name, never by address.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple, TypeVar

from ca.manifests import ContainerPort, Namespace, Node, Pod, enrolled
from ca.spiffe import SpiffeId
from node_agent.model import Cgroup, Locality, ObjectName, Workload
from node_agent.registry.claims import Claims

V = TypeVar("V")


class WorkloadChange(NamedTuple):
    """``before`` or ``after`` is None where it came or went."""

    before: Workload | None
    after: Workload | None


def _claim(pod: Pod | None) -> tuple[bool, str, bool] | None:
    """What decides, besides the workload itself, who holds an address."""
    return (pod.terminating, pod.created, pod.host_network) if pod is not None else None


@lru_cache(maxsize=4096)
def _named_ports(ports: tuple[ContainerPort, ...]) -> Mapping[str, int]:
    return {each.name: each.port for each in reversed(ports) if each.name}


@lru_cache(maxsize=4096)
def _identity(trust_domain: str, namespace: str, service_account: str) -> SpiffeId:
    return SpiffeId.workload(trust_domain, namespace, service_account)


class Workloads:
    """Every workload; changed only through ``apply``."""

    def __init__(self, trust_domain: str) -> None:
        self._trust_domain = trust_domain
        self._pods: dict[str, dict[str, Pod]] = {}  # namespace: name: pod
        self._namespaces: dict[str, Namespace] = {}
        self._localities: dict[str, Locality] = {}
        self._domains: dict[str, str] = {}  # node: its trust domain, where it is not ours
        self._workloads: dict[ObjectName, Workload] = {}
        self._on_node: dict[str, set[ObjectName]] = {}  # of the nodes that were asked for: mostly one, our own
        self._claims: Claims[Workload] = Claims(self._newest)
        self._holders = self._claims.holders

    def at(self, ip: str) -> Workload | None:
        return self._holders.get(ip)

    def named(self, name: ObjectName) -> Workload | None:
        return self._workloads.get(name)

    def pod(self, name: ObjectName) -> Pod | None:
        """What was declared under a name, whether it is a workload or not."""
        return self._pods.get(name.namespace, {}).get(name.name)

    def on(self, node: str) -> tuple[Workload, ...]:
        names = self._on_node.get(node)
        if names is None:
            names = self._on_node[node] = {each.name for each in self._workloads.values() if each.node == node}
        return tuple(self._workloads[name] for name in sorted(names))

    def in_namespace(self, namespace: str) -> Iterator[Workload]:
        for name in self._pods.get(namespace, {}):
            found = self._workloads.get(ObjectName(namespace, name))
            if found is not None:
                yield found

    def __iter__(self) -> Iterator[Workload]:
        return iter(self._workloads.values())

    def __len__(self) -> int:
        return len(self._workloads)

    def conflicts(self) -> Iterator[str]:
        """One line for each address that several pods claim."""
        for ip, claimants in sorted(self._claims.contested.items()):
            holder = self._holders[ip]
            others = sorted(str(each.name) for each in claimants if each is not holder)
            yield f"address {ip} is claimed by pods {holder.name} and {', '.join(others)}; {holder.name} is in force"

    def apply(
        self,
        pods: Mapping[ObjectName, Pod | None],
        namespaces: Mapping[str, Namespace | None],
        nodes: Mapping[str, Node | None],
    ) -> list[WorkloadChange]:
        """Take in what is new (or None for gone) and tell what that changed.

        A workload that lost or won a contested address is told too, with
        ``before`` and ``after`` equal.
        """
        touched = dict.fromkeys(pods)
        for name, namespace in namespaces.items():
            _put(self._namespaces, name, namespace)
            touched.update(dict.fromkeys(ObjectName(name, pod) for pod in self._pods.get(name, ())))
        moved = set()
        for name, node in nodes.items():
            locality = _locality(node) if node is not None else None
            domain = (node.trust_domain if node is not None else "") or self._trust_domain
            if (locality or Locality()) != self._localities.get(name, Locality()) or domain != self._domain_of(name):
                moved.add(name)
            _put(self._localities, name, locality)
            _put(self._domains, name, domain if domain != self._trust_domain else None)
        if moved:
            touched.update(dict.fromkeys(each.name for each in self if each.node in moved))
        reranked = set()
        for pod_name, pod in pods.items():
            in_namespace = self._pods.setdefault(pod_name.namespace, {})
            if (old := in_namespace.get(pod_name.name)) is not None and _claim(old) != _claim(pod):
                reranked.add(pod_name)
            _put(in_namespace, pod_name.name, pod)
            if not in_namespace:
                del self._pods[pod_name.namespace]
        rivals: set[ObjectName] = set()
        changes = [change for name in touched if (change := self._rebuild(name, rivals, reranked))]
        changes += (WorkloadChange(each, each) for name in rivals - touched.keys() if (each := self.named(name)))
        return changes

    def _rebuild(self, name: ObjectName, rivals: set[ObjectName], reranked: set[ObjectName]) -> WorkloadChange | None:
        pod = self._pods.get(name.namespace, {}).get(name.name)
        before = self._workloads.get(name)
        after = self._workload(name, pod) if pod and pod.addresses and not pod.finished else None
        if before == after and not (before is not None and name in reranked):
            return None
        if before is not None:
            del self._workloads[name]
            self._unfile(before, rivals)
        if after is not None:
            # Keep the very key that the workload holds: one object instead of two.
            self._workloads[after.name] = after
            self._file(after, rivals, host_network=pod is not None and pod.host_network)
        return WorkloadChange(before, after)

    def _newest(self, claimants: list[Workload]) -> Workload:
        """Who holds an address; a pod that is about to be taken out does not."""

        def rank(workload: Workload) -> tuple[bool, str, str, ObjectName]:
            pod = self._pods.get(workload.name.namespace, {}).get(workload.name.name)
            alive = pod is not None and not pod.terminating
            return (alive, pod.created if pod is not None else "", workload.uid, workload.name)

        return max(claimants, key=rank)

    def _workload(self, name: ObjectName, pod: Pod) -> Workload:
        return Workload(
            uid=pod.uid,
            name=name,
            service_account=pod.service_account,
            node=pod.node_name,
            addresses=pod.addresses,
            identity=_identity(self._domain_of(pod.node_name), pod.namespace, pod.service_account),
            enrolled=enrolled(self._namespaces.get(pod.namespace), pod),
            ready=pod.ready and not pod.terminating,
            labels=pod.labels,
            locality=self._localities.get(pod.node_name, Locality()),
            named_ports=_named_ports(pod.ports),
            proxy_protocol_ports=pod.proxy_protocol_ports,
            cgroup=_cgroup(pod),
        )

    def _domain_of(self, node: str) -> str:
        return self._domains.get(node, self._trust_domain)

    def _file(self, workload: Workload, rivals: set[ObjectName], *, host_network: bool) -> None:
        if (on_node := self._on_node.get(workload.node)) is not None:
            on_node.add(workload.name)
        if not host_network:
            for ip in workload.addresses:
                self._claims.add(ip, workload)
                rivals.update(other.name for other in self._claims.contested.get(ip, ()))

    def _unfile(self, workload: Workload, rivals: set[ObjectName]) -> None:
        if (on_node := self._on_node.get(workload.node)) is not None:
            on_node.discard(workload.name)
        for ip in workload.addresses:
            rivals.update(other.name for other in self._claims.contested.get(ip, ()))
            self._claims.remove(ip, workload)


def _cgroup(pod: Pod) -> Cgroup | None:
    place = pod.cgroup
    return None if place is None else Cgroup(path=place.path, unit=place.unit, ports=place.ports)


def _put(table: dict[str, V], key: str, value: V | None) -> None:
    if value is None:
        table.pop(key, None)
    else:
        table[key] = value


def _locality(node: Node) -> Locality:
    labels = node.labels
    return Locality(
        region=labels.get("topology.kubernetes.io/region", ""), zone=labels.get("topology.kubernetes.io/zone", "")
    )
