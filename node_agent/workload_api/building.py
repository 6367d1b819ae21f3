"""Builds the Workload API; imported only where it is switched on, because it costs memory."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from node_agent.identity import Identities
from node_agent.identity.identities import utc_now
from node_agent.identity.trust import TrustStore
from node_agent.model import Workload
from node_agent.telemetry.metrics import Metrics
from node_agent.workload_api.endpoint import WorkloadApi
from node_agent.workload_api.process import PeerProcess


class ServedPods(Protocol):
    """``Pods``: who is behind a process."""

    on_changed: list[Callable[[], None]]

    def workload_in(self, netns_inode: int) -> Workload | None: ...

    def workload_holding(self, cgroup: str) -> Workload | None: ...


def build_workload_api(
    *, path: Path, identities: Identities, trust: TrustStore, pods: ServedPods, metrics: Metrics, stack: ExitStack
) -> WorkloadApi:
    """Listen on ``path`` and follow ``pods``; ``stack`` closes it.  Raises AgentError."""

    def workload_of(process: PeerProcess) -> Workload | None:
        inode = process.network_namespace()
        if inode is None:
            return None
        found = pods.workload_in(inode)
        if found is None and (cgroup := process.cgroup()) is not None:
            found = pods.workload_holding(cgroup)
        return found

    api = WorkloadApi(
        path=path, identities=identities, trust=trust, workload_of=workload_of, metrics=metrics, utc_now=utc_now
    )
    stack.callback(api.close)
    pods.on_changed.append(api.pods_changed)
    return api
