"""Who runs where: which identities a node may ask for.

``Placements`` is the rule, pure.  ``PlacementDirectory`` feeds it from the
manifests: before each request it compares the stat signatures of the files and
reads those that changed.  A file that can not be read keeps its last good
version in force, as everywhere.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ca.authority.errors import Refusal
from ca.authority.logs import log
from ca.manifests import (
    MESH_LABEL,
    TRUST_DOMAIN_ANNOTATION,
    DirectoryState,
    MachineWorkload,
    ManifestObject,
    Namespace,
    Node,
    ObjectKey,
    Pod,
    enrolled,
    read_directory,
)
from ca.messages import RefusalCode
from ca.spiffe import SpiffeId, SpiffeIdError

_RETRY_AFTER_S: Final = 1.0  # a pod's manifest often reaches the agent a moment before the authority


class Placements:
    """Which workloads run on which node, by the manifests of one moment."""

    def __init__(self, *, trust_domain: str, objects: Mapping[ObjectKey, ManifestObject]) -> None:
        self._granted: dict[str, set[SpiffeId]] = {}
        self._withheld: dict[tuple[str, SpiffeId], str] = {}
        for item in objects.values():
            what = "pod"
            if isinstance(item, MachineWorkload):
                what, item = "Workload", item.pod  # noqa: PLW2901  # what is said of pods is true of it
            if not isinstance(item, Pod) or not item.node_name:
                continue
            node = objects.get(ObjectKey("Node", "", item.node_name))
            theirs = node.trust_domain if isinstance(node, Node) else ""
            try:
                identity = SpiffeId.workload(trust_domain, item.namespace, item.service_account)
            except SpiffeIdError:
                continue  # no SPIFFE ID can name it, so nobody can ask for it
            namespace = objects.get(ObjectKey("Namespace", "", item.namespace))
            if theirs not in ("", trust_domain):
                # Whatever the pod itself says: who certifies it is a matter of whose node it is on.
                reason: str | None = f"is on a node of trust domain {theirs} ({TRUST_DOMAIN_ANNOTATION})"
            else:
                reason = _withheld_because(namespace if isinstance(namespace, Namespace) else None, item)
            if reason:
                self._withheld[item.node_name, identity] = f"{what} {item.namespace}/{item.name} {reason}"
            else:
                self._granted.setdefault(item.node_name, set()).add(identity)

    def require_placed(self, identity: SpiffeId, *, node: str) -> None:
        """Raise Refusal unless a pod on ``node`` is entitled to ``identity``.

        About other nodes nothing is said: a stolen node certificate is not to
        learn where else to steal.
        """
        if identity in self._granted.get(node, ()):
            return
        if identity.service_account is None:
            raise Refusal(
                RefusalCode.NOT_SCHEDULED,
                f"{identity} is not the identity of a workload (/ns/<namespace>/sa/<service-account>)",
            )
        reason = self._withheld.get((node, identity), "no pod with this service account is scheduled there")
        raise Refusal(
            RefusalCode.NOT_SCHEDULED,
            f"by the manifests, node {node} runs no workload that may be {identity}: {reason}",
            retry_after_s=_RETRY_AFTER_S,
        )


class PlacementDirectory:
    """The manifests directory, read again when it changed.  Blocking; one thread at a time."""

    def __init__(self, *, trust_domain: str, directory: Path) -> None:
        self._trust_domain = trust_domain
        self._directory = directory
        self._state: DirectoryState | None = None
        self._placements: Placements | None = None
        self._reported: frozenset[str] = frozenset()

    def current(self) -> Placements:
        """What the directory says now.

        Raises:
            Refusal: ``unavailable``, the directory has never been readable.
        """
        state = read_directory(self._directory, self._state)
        self._report(state)
        if self._state is None and state.directory_problem is not None:
            raise Refusal(
                RefusalCode.UNAVAILABLE, "the authority can not read its manifests yet", retry_after_s=_RETRY_AFTER_S
            )
        if self._placements is None or state.touched:
            self._placements = Placements(trust_domain=self._trust_domain, objects=state.objects)
        self._state = state
        return self._placements

    def warm_up(self) -> None:
        """Read what is there, if anything is; whoever asks later is told what is wrong."""
        try:
            self.current()
        except Refusal:
            pass

    def _report(self, state: DirectoryState) -> None:
        problems = frozenset(str(problem) for problem in state.problems)
        for problem in sorted(problems - self._reported):
            log("manifest_problem", level=logging.WARNING, why=problem)
        self._reported = problems


def _withheld_because(namespace: Namespace | None, pod: Pod) -> str | None:
    """Why this pod is not entitled to an identity, or None if it is.

    A pod that is terminating still is: it works until its grace period ends.
    """
    if pod.finished:
        return f"has finished ({pod.phase})"
    if pod.host_network:
        return "is on the node's own network, which is never enrolled"
    if not enrolled(namespace, pod):
        return f"is not enrolled (label {MESH_LABEL}: enabled on the pod or its namespace)"
    return None
