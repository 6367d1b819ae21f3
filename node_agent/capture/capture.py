"""The ways to capture, as ``Pods`` sees them: open a workload's network, close the way around us, watch.

inpod    InPodCapture: sockets and nftables rules inside the pod's network namespace
cgroup   CgroupCapture: BPF at the workload's cgroup, rules for its addresses on the node (cgroup_capture.py)
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from node_agent.capture.network import Listeners, WorkloadNetwork
from node_agent.capture.plumbing import PlumbingError, PlumbingJob, plumb
from node_agent.capture.pod_network import PodNetwork
from node_agent.model import ObjectName, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureJob:
    """One workload to capture (``install``) or to set free.

    ``listeners`` is None where we can not listen: then its connections have to fail.
    """

    workload: Workload
    network: WorkloadNetwork
    listeners: Listeners | None
    install: bool


class Capture(Protocol):
    """One way to capture the workloads of a node."""

    def want(self, enrolled: Collection[Workload], *, is_complete: bool) -> None:
        """These are to be captured from now on; ``is_complete``: whoever is not among them is really gone."""

    def open(self, workload: Workload) -> WorkloadNetwork:
        """Open the network of a workload; the caller closes it.  Raises OSError, whose strerror is for people."""

    def holder(self, said: str) -> ObjectName | None:
        """The workload whose process has this /proc/PID/cgroup; None where workloads are no cgroups."""

    async def apply(self, jobs: Sequence[CaptureJob]) -> list[PlumbingError | None]:
        """Do all ``jobs``; returns one error or None for each, in order."""

    async def run(self) -> None:
        """Keep what is captured captured, until cancelled."""


class InPodCapture:
    """Rules inside the pods' network namespaces."""

    def __init__(self, netns_path: Callable[[Workload], Path]) -> None:
        self._netns_path = netns_path

    def want(self, enrolled: Collection[Workload], *, is_complete: bool) -> None:
        """Nothing: a pod's rules go with its namespace."""

    def open(self, workload: Workload) -> WorkloadNetwork:
        """Open the pod's namespace."""
        if workload.cgroup is not None:
            raise OSError(0, 'it is a Workload with a cgroup, which needs [capture] mode = "cgroup"')
        path = self._netns_path(workload)
        try:
            return PodNetwork.open(path)
        except OSError as error:
            raise OSError(error.errno, f"cannot open its network namespace {path}: {error.strerror}") from error

    def holder(self, _said: str) -> None:
        """Pods are known by their namespaces."""

    async def apply(self, jobs: Sequence[CaptureJob]) -> list[PlumbingError | None]:
        """Put the rules in, or take them out."""
        return await plumb([PlumbingJob(fd=job.network.namespace.fd, install=job.install) for job in jobs])

    async def run(self) -> None:
        """Nothing to watch: whoever takes the rules out of a pod owns it."""
