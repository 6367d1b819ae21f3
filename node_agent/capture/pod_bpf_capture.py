"""Capture mode ``inpod-bpf``: the agent's sockets inside the pods, and BPF instead of netfilter (docs/bpf.md)."""

import logging
import socket
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final

from node_agent.capture.capture import CaptureJob
from node_agent.capture.netns import NetworkNamespace
from node_agent.capture.network import WorkloadNetwork
from node_agent.capture.original_destination import peer_address
from node_agent.capture.pinned import Origins
from node_agent.capture.plumbing import PlumbingError, PlumbingJob, plumb
from node_agent.capture.pod_network import PodNetwork
from node_agent.capture.pod_source import PodSources
from node_agent.capture.pod_steering import PodSteering, cookie_of
from node_agent.model import OriginalDestination, PeerAddress, Workload

_log: Final = logging.getLogger("ringfence.capture")


class SteeredPodNetwork(PodNetwork):
    """A pod's network whose connections BPF sends to the agent."""

    __slots__ = ("_origins", "netns_cookie")
    mode = "inpod-bpf"

    def __init__(self, namespace: NetworkNamespace, *, origins: Origins) -> None:
        """Take over the pod's namespace; ``origins`` stay the caller's."""
        super().__init__(namespace)
        self._origins = origins
        self.netns_cookie = cookie_of(namespace)

    def outbound_destination(self, connection: socket.socket, peer: PeerAddress) -> OriginalDestination:
        """As the programs have filed it; raises ConnectionFailure."""
        return self._origins.outbound(connection, peer, namespace=self.netns_cookie)

    def inbound_destination(self, connection: socket.socket, peer: PeerAddress) -> OriginalDestination:
        """The address of the accepted socket."""
        return OriginalDestination(*peer_address(connection.getsockname()))


class PodBpfCapture:
    """A :class:`Capture` without netfilter.  ``steering``, ``origins`` and ``sources`` stay the caller's.

    Every pod that is captured or set free, so every one of the node, is kept from sending with the addresses of
    others; without ``sources`` none is.
    """

    def __init__(
        self,
        netns_path: Callable[[Workload], Path],
        *,
        steering: PodSteering,
        origins: Origins,
        sources: PodSources | None,
    ) -> None:
        self._netns_path = netns_path
        self._steering = steering
        self._origins = origins
        self._sources = sources
        self._unguarded: set[str] = set()  # uids of those that can not be

    def want(self, enrolled: Collection[Workload], *, is_complete: bool) -> None:
        """Forget the pods whose namespaces are gone."""
        self._steering.tidy_up()
        if self._sources is not None:
            self._sources.tidy_up()

    def open(self, workload: Workload) -> WorkloadNetwork:
        """Open the pod's namespace."""
        if workload.cgroup is not None:
            raise OSError(0, 'it is a Workload with a cgroup, which needs [capture] mode = "cgroup"')
        path = self._netns_path(workload)
        try:
            return SteeredPodNetwork(NetworkNamespace.open(path), origins=self._origins)
        except OSError as error:
            raise OSError(error.errno, f"cannot open its network namespace {path}: {error.strerror}") from error

    def holder(self, _said: str) -> None:
        """Pods are known by their namespaces."""

    async def apply(self, jobs: Sequence[CaptureJob]) -> list[PlumbingError | None]:
        """The way back for the answers, then the programs; a pod that is set free loses the programs last."""
        results = await plumb(
            [PlumbingJob(fd=job.network.namespace.fd, install=job.install, by_bpf=True) for job in jobs]
        )
        for number, (job, error) in enumerate(zip(jobs, results, strict=True)):
            self._guard(job)
            try:
                if not job.install:
                    self._steering.set_free(cookie_of(job.network.namespace))
                elif error is None:
                    self._steering.serve(job.network.namespace, job.workload.addresses, job.listeners)
            except OSError as failed:
                results[number] = PlumbingError(f"BPF: {failed.strerror}")
        return results

    def _guard(self, job: CaptureJob) -> None:
        """A pod of a network that can not be guarded so is served nevertheless; the log says it."""
        if self._sources is None:
            return
        try:
            self._sources.guard(job.network.namespace, job.workload.addresses)
        except OSError as error:
            if job.workload.uid not in self._unguarded:
                _log.warning(
                    "pod %s can send with the addresses of others, unless the network keeps it from that: %s",
                    job.workload.name,
                    error.strerror,
                )
            self._unguarded.add(job.workload.uid)

    async def run(self) -> None:
        """Nothing to watch: what is linked stays so."""
