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
from node_agent.model import Locality, ObjectName, Workload
from node_agent.registry.claims import Claims

V = TypeVar("V")


class Incarnation(NamedTuple):
    """A workload with what only this module needs to know about its pod."""

    workload: Workload
    created: str
    terminating: bool
    host_network: bool


class WorkloadChange(NamedTuple):
    """``before`` or ``after`` is None where it came or went."""

    before: Workload | None
    after: Workload | None


def _newest(claimants: list[Incarnation]) -> Incarnation:
    return max(claimants, key=lambda each: (not each.terminating, each.created, each.workload.uid, each.workload.name))


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
        self._incarnations: dict[ObjectName, Incarnation] = {}
        self._on_node: dict[str, set[ObjectName]] = {}
        self._claims: Claims[Incarnation] = Claims(_newest)
        self._holders = self._claims.holders

    def at(self, ip: str) -> Workload | None:
        found = self._holders.get(ip)
        return found.workload if found is not None else None

    def named(self, name: ObjectName) -> Workload | None:
        found = self._incarnations.get(name)
        return found.workload if found is not None else None

    def on(self, node: str) -> tuple[Workload, ...]:
        return tuple(self._incarnations[name].workload for name in sorted(self._on_node.get(node, ())))

    def in_namespace(self, namespace: str) -> Iterator[Workload]:
        for name in self._pods.get(namespace, {}):
            found = self._incarnations.get(ObjectName(namespace, name))
            if found is not None:
                yield found.workload

    def __iter__(self) -> Iterator[Workload]:
        return (each.workload for each in self._incarnations.values())

    def __len__(self) -> int:
        return len(self._incarnations)

    def conflicts(self) -> Iterator[str]:
        """One line for each address that several pods claim."""
        for ip, claimants in sorted(self._claims.contested.items()):
            holder = self._holders[ip].workload
            others = sorted(str(each.workload.name) for each in claimants if each.workload is not holder)
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
        for name, node in nodes.items():
            locality = _locality(node) if node is not None else None
            if locality != self._localities.get(name, Locality()):
                touched.update(dict.fromkeys(self._on_node.get(name, ())))
            _put(self._localities, name, locality)
        for pod_name, pod in pods.items():
            in_namespace = self._pods.setdefault(pod_name.namespace, {})
            _put(in_namespace, pod_name.name, pod)
            if not in_namespace:
                del self._pods[pod_name.namespace]
        rivals: set[ObjectName] = set()
        changes = [change for name in touched if (change := self._rebuild(name, rivals)) is not None]
        changes += (WorkloadChange(each, each) for name in rivals - touched.keys() if (each := self.named(name)))
        return changes

    def _rebuild(self, name: ObjectName, rivals: set[ObjectName]) -> WorkloadChange | None:
        pod = self._pods.get(name.namespace, {}).get(name.name)
        before = self._incarnations.get(name)
        after = self._incarnation(name, pod) if pod and pod.addresses and not pod.finished else None
        if before == after:
            return None
        if before is not None:
            del self._incarnations[name]
            self._unfile(before, rivals)
        if after is not None:
            # Keep the very key that the workload holds: one object instead of two.
            self._incarnations[after.workload.name] = after
            self._file(after, rivals)
        return WorkloadChange(before.workload if before else None, after.workload if after else None)

    def _incarnation(self, name: ObjectName, pod: Pod) -> Incarnation:
        workload = Workload(
            uid=pod.uid,
            name=name,
            service_account=pod.service_account,
            node=pod.node_name,
            addresses=pod.addresses,
            identity=_identity(self._trust_domain, pod.namespace, pod.service_account),
            enrolled=enrolled(self._namespaces.get(pod.namespace), pod),
            ready=pod.ready and not pod.terminating,
            labels=pod.labels,
            locality=self._localities.get(pod.node_name, Locality()),
            named_ports=_named_ports(pod.ports),
        )
        return Incarnation(workload, pod.created, pod.terminating, pod.host_network)

    def _file(self, each: Incarnation, rivals: set[ObjectName]) -> None:
        workload = each.workload
        self._on_node.setdefault(workload.node, set()).add(workload.name)
        if not each.host_network:
            for ip in workload.addresses:
                self._claims.add(ip, each)
                rivals.update(other.workload.name for other in self._claims.contested.get(ip, ()))

    def _unfile(self, each: Incarnation, rivals: set[ObjectName]) -> None:
        workload = each.workload
        on_node = self._on_node[workload.node]
        on_node.discard(workload.name)
        if not on_node:
            del self._on_node[workload.node]
        for ip in workload.addresses if not each.host_network else ():
            rivals.update(other.workload.name for other in self._claims.contested.get(ip, ()))
            self._claims.remove(ip, each)


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
