"""Through which pods the connections to places outside leave the cluster.

A place is declared to leave through nodes (ca/manifests/egress.py): by itself,
else by its Namespace, else by the mesh's root namespace.  Its egress are the pods
on these nodes that carry the label, are in the mesh, and are of the place's own
namespace, or of one that is labelled too: a tenant who may make pods in one
namespace must not get the connections of another one.
"""

from collections.abc import Iterable, Iterator, Mapping

from ca.manifests import MESH_LABEL, ExternalService, Namespace
from ca.manifests.egress import EGRESS_LABEL, EGRESS_NODE_ANNOTATION, is_egress
from node_agent.model import ObjectName, Workload
from node_agent.registry.workloads import WorkloadChange


class EgressPods:
    """Every egress pod and every default; changed only through ``apply``.

    Args:
        root_namespace: whose default is the mesh's.
    """

    def __init__(self, root_namespace: str) -> None:
        self._root_namespace = root_namespace
        self._defaults: dict[str, tuple[str, ...]] = {}  # by namespace
        self._open_to_all: set[str] = set()  # namespaces whose egress pods serve every namespace
        self._labelled: dict[ObjectName, Workload] = {}

    def apply(self, namespaces: Mapping[str, Namespace | None], workloads: Iterable[WorkloadChange]) -> bool:
        """Take in what is new (or None for gone); returns whether anything of it is about egress."""
        before = (dict(self._defaults), set(self._open_to_all))
        for name, namespace in namespaces.items():
            self._defaults.pop(name, None)
            self._open_to_all.discard(name)
            if namespace is not None and namespace.egress_nodes is not None:
                self._defaults[name] = namespace.egress_nodes
            if namespace is not None and is_egress(namespace.labels):
                self._open_to_all.add(name)
        is_changed = before != (self._defaults, self._open_to_all)
        for was, now in workloads:
            if was is not None and self._labelled.pop(was.name, None) is not None:
                is_changed = True
            if now is not None and is_egress(now.labels):
                self._labelled[now.name] = now
                is_changed = True
        return is_changed

    def nodes_of(self, place: ExternalService) -> tuple[str, ...]:
        """The nodes that its connections leave through; none for directly."""
        if place.egress_nodes is not None:
            return place.egress_nodes
        return self._defaults.get(place.namespace, self._defaults.get(self._root_namespace, ()))

    def of(self, place: ExternalService) -> list[Workload]:
        """Who makes its connections, ready or not, by name."""
        nodes = self.nodes_of(place)
        return [each for _, each in sorted(self._labelled.items()) if each.node in nodes and self._serves(each, place)]

    def problems(self, place: ExternalService, nodes: Iterable[str]) -> Iterator[str]:
        """Why connections to a place are refused, for people; ``nodes`` are those that exist."""
        wanted = self.nodes_of(place)
        kind, namespace, name = place.key
        what = f"{kind} {namespace}/{name} leaves through node {' or '.join(wanted)}"
        if not wanted or any(each.ready for each in self.of(place)):
            known = set(nodes)
            for missing in (each for each in wanted if each not in known):
                yield f"{what}, but there is no node {missing}; correct the annotation {EGRESS_NODE_ANNOTATION}"
            return
        if not set(wanted) & set(nodes):
            yield f"{what}, which does not exist; its connections are refused until it does"
            return
        there = [each for each in self._labelled.values() if each.node in wanted]
        if self.of(place):
            why = "whose egress pods are not ready"
        elif any(self._serves(each, place, whether_enrolled=False) for each in there):
            why = f"whose egress pods are not in the mesh (label {MESH_LABEL}=enabled)"
        elif there:
            others = ", ".join(sorted({str(each.name) for each in there}))
            why = (
                f"whose egress pods ({others}) are of other namespaces; "
                f"label such a namespace {EGRESS_LABEL}=true to let it serve all"
            )
        else:
            why = f"where no pod of namespace {namespace} has the label {EGRESS_LABEL}=true"
        yield f"{what}, {why}; its connections are refused"

    def _serves(self, pod: Workload, place: ExternalService, *, whether_enrolled: bool = True) -> bool:
        is_allowed = pod.name.namespace == place.namespace or pod.name.namespace in self._open_to_all
        return is_allowed and (pod.enrolled or not whether_enrolled)
