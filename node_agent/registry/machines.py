"""Workload manifests among the pods: a Workload is known as the Pod that it amounts to.

A Pod and a Workload of one name in one namespace would be one workload with two
bodies: the Pod is in force, and ``conflicts`` says so.
"""

from collections.abc import Callable, Iterator, Mapping

from ca.manifests import MachineWorkload, Pod
from node_agent.model import ObjectName


class Machines:
    """Every Workload manifest; ``known`` returns the Pod, real or not, that the registry has under a name."""

    def __init__(self, known: Callable[[ObjectName], Pod | None]) -> None:
        self._known = known
        self._workloads: dict[ObjectName, MachineWorkload] = {}

    def merge(
        self,
        pods: Mapping[ObjectName, Pod | None],
        workloads: Mapping[ObjectName, MachineWorkload | None],
    ) -> Mapping[ObjectName, Pod | None]:
        """Take in one step, and return what it means in pods."""
        for name, workload in workloads.items():
            if workload is None:
                self._workloads.pop(name, None)
            else:
                self._workloads[name] = workload
        if not workloads and not self._workloads:
            return pods
        merged = dict(pods)
        for name in {*workloads, *(name for name, pod in pods.items() if pod is None and name in self._workloads)}:
            if merged.get(name) is None and (name in pods or not self._has_pod(name)):
                workload = self._workloads.get(name)
                merged[name] = None if workload is None else workload.pod
        return merged

    def conflicts(self) -> Iterator[str]:
        """One line for each Workload that is not in force."""
        for name in sorted(self._workloads):
            if self._has_pod(name):
                yield f"Workload {name} has the name of a Pod, which is in force; give it another"

    def _has_pod(self, name: ObjectName) -> bool:
        pod = self._known(name)
        return pod is not None and pod.cgroup is None
