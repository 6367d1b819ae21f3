"""Worker processes as the agent's ``Carrier`` (node_agent/carrier.py)."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import trio

from node_agent.config import Config
from node_agent.errors import AgentError, CloseReason
from node_agent.identity import Identities
from node_agent.identity.trust import TrustStore
from node_agent.registry import Changes, Registry, Update
from node_agent.registry.changes import RegistryObject
from node_agent.telemetry.log_levels import LogLevels
from node_agent.telemetry.metrics import FamilyReading, Metrics
from node_agent.workers.group import State, Workers
from node_agent.workers.messages import pack_trust
from node_agent.workers.view import WorkersView


class InWorkers:
    """Workers carry; this process feeds them, and speaks for them."""

    def __init__(
        self,
        *,
        config: Config,
        registry: Registry,
        objects: Callable[[], Iterable[RegistryObject]],
        identities: Identities,
        trust: TrustStore,
        metrics: Metrics,
        stream_locks: tuple[int, int],
        on_crash: Callable[[AgentError], None],
    ) -> None:
        """``objects`` is what is in the registry; ``on_crash`` is told when the workers keep ending."""
        self._workers = Workers(
            config=config,
            state=State(objects=objects, trust=lambda: pack_trust(trust.trust), credentials=identities.held),
            identities=identities,
            stream_locks=stream_locks,
            on_hopeless=lambda text: on_crash(AgentError(text)),
        )
        self.server = self._workers.pods
        identities.on_rotated.append(self._workers.rotated)
        trust.on_changed.append(self._workers.trust_changed)
        self._view = WorkersView(self._workers, metrics=metrics, revision=lambda: registry.revision)
        self.connections = self.tunnels = self.loads = self._view
        self.prepare = self._view.prepare
        metrics.counter(
            "ringfence_worker_crashes_total",
            "Worker processes that ended by themselves.",
            lambda: self._workers.crashes,
        )
        metrics.counter(
            "ringfence_worker_handovers_total",
            "Tunnels that one worker accepted and another one has the shared tunnel of.",
            lambda: {(result,): count for result, count in self._workers.passing.results.items()},
            labels=("result",),
        )

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Keep the workers running."""
        await self._workers.run(task_status=task_status)

    async def finish(self) -> None:
        """Nothing: a worker has said everything before it ends."""

    def updated(self, update: Update, _changes: Changes) -> None:
        """Pass it on."""
        self._workers.update(update)

    async def settled(self) -> None:
        """Return when every worker has taken in what was told so far."""
        await self._workers.settled()

    def drain(self) -> None:
        """Accept nothing more."""
        self._workers.drain()

    def cut_all(self, reason: CloseReason, detail: str) -> None:
        """Cut every connection that is left."""
        self._workers.cut_all(reason, detail)

    def set_log_levels(self, levels: LogLevels) -> None:
        """Let the workers log so, too."""
        self._workers.set_log_levels(levels)

    def start_profile(self, seconds: float) -> None:
        """Begin a profile in each worker."""
        self._workers.start_profile(seconds)

    def debugging(self, path: str) -> Sequence[Mapping[str, object]]:
        """What the workers answered last to a path of ``telemetry.debugging.routes``."""
        return self._view.debugging(path)

    def refresh_logs(self) -> None:
        """They write the records."""
        self._workers.refresh_logs()

    def families(self) -> Iterator[FamilyReading]:
        """The same as numbers."""
        return self._view.families()

    def problems(self) -> Sequence[str]:
        """What the workers lose of what they have to tell."""
        return self._view.problems()

    def not_ready(self) -> list[str]:
        """What keeps the workers from carrying."""
        return self._workers.not_ready()

    def workers(self) -> Sequence[Mapping[str, object]]:
        """One row a worker."""
        return self._workers.status(trio.current_time())
