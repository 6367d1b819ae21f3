"""What goes into the registry and what comes out."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ca.manifests import AuthorizationPolicy, ManifestObject, ObjectKey
from node_agent.model import ObjectName, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedName:
    """What DNS says of a name, addresses canonical and sorted.

    ``addresses`` is where it is now; ``recent`` where it was a while ago, and
    where an application that resolves for itself may still go.
    """

    name: str
    addresses: tuple[str, ...] = ()
    recent: tuple[str, ...] = ()

    @property
    def key(self) -> ObjectKey:
        return ObjectKey("ResolvedName", "", self.name)


RegistryObject = ManifestObject | ResolvedName


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """A step of a source: every object that is new or changed, and the keys of those that are gone."""

    upserts: tuple[RegistryObject, ...] = ()
    deletes: tuple[ObjectKey, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What one ``Registry.apply`` changed.

    Act on ``workloads_removed`` before ``workloads_added``: a pod that was made
    again is in both, with the same name and often the same address, but never
    with the same uid and addresses and identity.  ``workloads_changed`` holds
    the new values of workloads that kept uid, node, addresses, identity and
    enrolment: readiness, labels or ports differ, or who holds an address that
    several pods claim.

    ``services_changed`` names services that are new, or whose definition or
    endpoints may differ; of services whose endpoints come from EndpointSlices,
    a change in a pod is reported only if somebody asked for those endpoints.
    ``mtls_changed``: a PeerAuthentication came, went or changed.  ``policies``:
    each AuthorizationPolicy that is new or another than before, None for gone; for
    the policy engine, which also has to hear of workloads (their labels).
    ``same_node_changed``: a Namespace says something else of connections on one node; ``balance_changed``: of who
    chooses the endpoints of its services.
    """

    revision: int
    workloads_added: tuple[Workload, ...] = ()
    workloads_removed: tuple[Workload, ...] = ()
    workloads_changed: tuple[Workload, ...] = ()
    services_changed: frozenset[ObjectName] = frozenset()
    services_removed: frozenset[ObjectName] = frozenset()
    mtls_changed: bool = False
    policies: Mapping[ObjectName, AuthorizationPolicy | None] = field(default_factory=dict)
    same_node_changed: bool = False
    balance_changed: bool = False

    def workloads_gone(self) -> list[Workload]:
        """Those removed ones that did not merely enter or leave the mesh."""
        still = {(each.uid, each.identity, each.addresses) for each in self.workloads_added}
        return [each for each in self.workloads_removed if (each.uid, each.identity, each.addresses) not in still]

    def __bool__(self) -> bool:
        return bool(
            self.workloads_added
            or self.workloads_removed
            or self.workloads_changed
            or self.services_changed
            or self.services_removed
            or self.mtls_changed
            or self.policies
            or self.same_node_changed
            or self.balance_changed
        )
