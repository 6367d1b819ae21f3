"""Which mTLS mode is in force for a workload and port: Istio's precedence.

From the PeerAuthentication reference: "the policy with a narrower scope takes
precedence": a workload's (with a selector), then its namespace's, then the
mesh's (root namespace, no selector); UNSET inherits from the next wider one;
without any, PERMISSIVE.  Of several of one scope the oldest counts, then the
first by name.  ``portLevelMtls`` counts only in a workload's policy, by the
workload's own port.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from ca.manifests import PeerAuthentication
from node_agent.model import MtlsMode, ObjectName, Workload


class _Modes(NamedTuple):
    workload: Workload
    mode: MtlsMode
    by_port: Mapping[int, MtlsMode]


class PeerAuthentications:
    """Every PeerAuthentication, and the modes already worked out."""

    def __init__(self, root_namespace: str) -> None:
        self._root_namespace = root_namespace
        self._policies: dict[str, dict[str, PeerAuthentication]] = {}  # namespace: name
        self._modes: dict[ObjectName, _Modes] = {}

    def apply(self, policies: Mapping[ObjectName, PeerAuthentication | None]) -> None:
        for name, policy in policies.items():
            in_namespace = self._policies.setdefault(name.namespace, {})
            if policy is not None:
                in_namespace[name.name] = policy
            else:
                in_namespace.pop(name.name, None)
        if policies:
            self._modes.clear()

    def forget(self, workload: ObjectName) -> None:
        """The workload is gone."""
        self._modes.pop(workload, None)

    def mode(self, workload: Workload, port: int) -> MtlsMode:
        found = self._modes.get(workload.name)
        if found is None or found.workload is not workload:
            found = self._modes[workload.name] = self._work_out(workload)
        return found.by_port.get(port, found.mode)

    def _work_out(self, workload: Workload) -> _Modes:
        namespace = workload.name.namespace
        mode = MtlsMode.PERMISSIVE
        for scope in dict.fromkeys((self._root_namespace, namespace)):
            wide = self._oldest(scope, lambda policy: not policy.selector)
            if wide is not None and wide.mode is not None:
                mode = MtlsMode(wide.mode)
        narrow = self._oldest(namespace, lambda policy: bool(policy.selector) and _selects(policy, workload))
        if narrow is None:
            return _Modes(workload, mode, {})
        if narrow.mode is not None:
            mode = MtlsMode(narrow.mode)
        by_port = {port: mode if each is None else MtlsMode(each) for port, each in narrow.port_modes.items()}
        return _Modes(workload, mode, by_port)

    def _oldest(self, namespace: str, wanted: Callable[[PeerAuthentication], bool]) -> PeerAuthentication | None:
        policies: Iterable[PeerAuthentication] = self._policies.get(namespace, {}).values()
        return min(filter(wanted, policies), key=lambda policy: (policy.created, policy.name), default=None)


def _selects(policy: PeerAuthentication, workload: Workload) -> bool:
    return policy.selector.items() <= workload.labels.items()
