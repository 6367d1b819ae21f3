"""Who carries the connections: this process, or worker processes.  The agent does not care.

    InProcess   ``[agent] workers = 1``: the data path is in the agent's own process, and nothing else is there
    InWorkers   ``workers = N``: N processes carry; this one keeps capture, registry, identities and the admin socket
                (node_agent/workers/carrier.py, not even imported otherwise)

Both get the same: pods to serve, steps of the registry, the order to drain.  Both
tell the same: figures for people and for Prometheus.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import trio

from ca.http_server import Prepare
from node_agent.data_path import DataPath
from node_agent.errors import CloseReason
from node_agent.proxy.serving import PodServer
from node_agent.registry import Changes, Update
from node_agent.report import ConnectionCounts, Loads, TunnelCounts
from node_agent.telemetry.log_levels import LogLevels
from node_agent.telemetry.metrics import FamilyReading, Metrics


class Carrier(Protocol):
    """What the agent asks of either."""

    @property
    def server(self) -> PodServer:
        """Serves the pods."""

    @property
    def connections(self) -> ConnectionCounts: ...

    @property
    def tunnels(self) -> TunnelCounts: ...

    @property
    def loads(self) -> Loads: ...

    @property
    def prepare(self) -> Prepare | None:
        """For the HTTP servers: fetches what a request is going to show."""

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Carry until cancelled; begun when the registry is loaded, and before any pod is served."""

    async def finish(self) -> None:
        """Return when the last connection's last words are said."""

    def updated(self, update: Update, changes: Changes) -> None:
        """The registry has taken ``update``, with these ``changes``."""

    async def settled(self) -> None:
        """Return when everything told so far is in force wherever connections are judged."""

    def drain(self) -> None:
        """Accept nothing more."""

    def cut_all(self, reason: CloseReason, detail: str) -> None:
        """Cut every connection that is left."""

    def set_log_levels(self, levels: LogLevels) -> None:
        """This process logs so already; let the others, if there are any."""

    def start_profile(self, seconds: float) -> None:
        """Begin a profile in the other processes."""

    def debugging(self, path: str) -> Sequence[Mapping[str, object]]:
        """What the other processes answer to a path of ``telemetry.debugging.routes``."""

    def refresh_logs(self) -> None:
        """Files may have been renamed; those of this process are looked after."""

    def families(self) -> Iterator[FamilyReading]:
        """The metrics of the whole agent."""

    def problems(self) -> Sequence[str]:
        """What it loses of what it has to tell (logs, collectors), for operators."""

    def not_ready(self) -> list[str]:
        """What keeps it from carrying."""

    def workers(self) -> Sequence[Mapping[str, object]]:
        """One row a worker process; none in one process."""


class InProcess:
    """The data path in the agent's own process."""

    def __init__(self, data_path: DataPath, *, metrics: Metrics, problems: Callable[[], Sequence[str]] = tuple) -> None:
        self._data_path = data_path
        self.problems = problems
        self.prepare: Prepare | None = self._bring_up_to_date
        self._metrics = metrics
        self.server = data_path.server
        self.connections = data_path.access_log
        self.tunnels = data_path.tunnels
        self.loads = data_path.balancer

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Look after the idle tunnels."""
        task_status.started()
        await self._data_path.run()

    async def finish(self) -> None:
        """Return when nothing is being relayed any more."""
        await self._data_path.relay.finish()

    def updated(self, _update: Update, changes: Changes) -> None:
        """The stories look at the registry themselves; what it ends is cut."""
        self._data_path.follow(changes)

    async def settled(self) -> None:
        """At once: there is one process."""

    def drain(self) -> None:
        """Whoever has something to end waits for ``Drain`` itself."""

    def cut_all(self, reason: CloseReason, detail: str) -> None:
        """Cut every connection that is left."""
        self._data_path.live.cut_all(reason, detail)

    def set_log_levels(self, _levels: LogLevels) -> None:
        """There is no other process."""

    def start_profile(self, seconds: float) -> None:
        """There is no other process."""

    def debugging(self, _path: str) -> Sequence[Mapping[str, object]]:
        """There is no other process."""
        return []

    def refresh_logs(self) -> None:
        """There is no other process."""

    async def _bring_up_to_date(self, _path: str) -> None:
        """Whoever asks may show figures: here others have their turn in between, which ``families`` can not give."""
        for _ in self._metrics.steps():
            await trio.lowlevel.checkpoint()

    def families(self) -> Iterator[FamilyReading]:
        """The metrics of the whole agent."""
        return self._metrics.read()

    def not_ready(self) -> list[str]:
        """Nothing: it can carry from the start."""
        return []

    def workers(self) -> Sequence[Mapping[str, object]]:
        """There are none."""
        return []
