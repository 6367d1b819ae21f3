"""The parent's side: keep N workers running, and give each of them all that it needs.

What feeds the data path is told here once and goes to every worker: ``update``,
``trust_changed``, ``rotated``, ``set_log_levels``, ``drain``, and the pods
(pods.py).  A worker that is started later gets the
whole state of that moment first, and then the same steps as the others.

A worker that ends by itself is started again after a pause (restarts.py); its
connections are reset by the kernel, and new ones go to the others, which accept
on the same listening sockets.  So do those that waited in their queue.

One that is silent for a minute is killed: it would accept no more, but its
connections would wait for ever.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

import trio

from ca.spiffe import SpiffeId
from node_agent.config import Config
from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.identity import Credentials, Identities
from node_agent.registry import Update
from node_agent.registry.changes import RegistryObject
from node_agent.telemetry.access_log import new_run
from node_agent.telemetry.log_levels import LogLevels
from node_agent.workers import messages as say
from node_agent.workers.figures import OPEN, RESIDENT_BYTES, Figures
from node_agent.workers.ledger import SharedLedger
from node_agent.workers.passing import Passing
from node_agent.workers.pods import SharedPods
from node_agent.workers.process import NoAnswer, WorkerProcess
from node_agent.workers.received import svid_message
from node_agent.workers.restarts import Restarts
from node_agent.workers.tunnel_messages import PassOn, SharedTunnelEnded, Taken, TunnelShared

_log: Final = logging.getLogger("ringfence.workers")

_ANSWER_S: Final = 2.0  # for people and Prometheus; what was said last time stands in for it
_LOOK_S: Final = 20.0
_SILENCE_S: Final = 20.0
_MOST_SILENCES: Final = 2
_AFTER_CUT_S: Final = 5.0  # a worker whose connections were cut has nothing left to wait for


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Where a new worker's first state comes from; each is asked when a worker starts."""

    objects: Callable[[], Iterable[RegistryObject]]
    trust: Callable[[], bytes]
    credentials: Callable[[], Iterable[Credentials]]


class Workers:
    """``count`` worker processes; ``run`` keeps them running."""

    def __init__(
        self,
        *,
        config: Config,
        state: State,
        identities: Identities,
        stream_locks: tuple[int, int],
        on_hopeless: Callable[[str], None],
    ) -> None:
        """``on_hopeless`` is told why when the workers keep ending: the agent must not go on without them."""
        self._config = config
        self._on_hopeless = on_hopeless
        self._count = config.agent.workers
        self._state = state
        self._identities = identities
        # Open as long as the process: a worker may be told of it until the end.
        self._ledger, ledger_fd = SharedLedger.create(config.agent.workers)
        self._shared = (*stream_locks, ledger_fd)
        self._log_levels = say.LogLevel(level=config.agent.log_level)
        self._run = new_run()
        self._starts = 0
        self._running: dict[int, WorkerProcess] = {}
        self._restarts = Restarts(self._count)
        self._pending = set(range(1, self._count + 1))  # have not been ready yet, ever
        self._draining = trio.Event()
        self._none = trio.Event()
        self._nursery: trio.Nursery | None = None
        self.pods = SharedPods(running=self._running, none=self._none)
        self.passing = Passing(self._running)
        self.figures = Figures()

    # -- life -----------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the workers until drained; call it when the state is there."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._look_after)
            async with trio.open_nursery() as keepers:
                for number in range(1, self._count + 1):
                    keepers.start_soon(self._keep, number)
                task_status.started()
            self._none.set()
            nursery.cancel_scope.cancel()

    async def _keep(self, number: int) -> None:
        while not self._draining.is_set():
            code = await self._run_one(number)
            if self._draining.is_set():
                return
            _log.error("worker %d ended with %s; its connections are reset", number, _exit_text(code))
            pause_s = self._restarts.crashed(trio.current_time())
            if pause_s is None:
                self._on_hopeless(
                    f"the worker processes keep ending, the last one with {_exit_text(code)}; the log says why"
                )
                return
            with trio.move_on_after(pause_s):
                await self._draining.wait()

    async def _run_one(self, number: int) -> int:
        try:
            worker = WorkerProcess(number, now=trio.current_time())
        except OSError as error:
            _log.error("worker %d can not be started: %s", number, error.strerror)
            return 1
        _log.info("worker %d is process %d", number, worker.pid)
        self._running[number] = worker
        try:
            self._tell_everything(worker)
            return await worker.run(self._handle)
        finally:
            del self._running[number]
            self._ledger.forget(number)
            self.figures.ended(number)
            self.pods.worker_ended(number)
            self.passing.worker_ended(number)

    def _tell_everything(self, worker: WorkerProcess) -> None:
        self._starts += 1
        start = say.Start(
            worker=worker.number,
            workers=self._count,
            run=f"{self._run}.{self._starts}",
            config=self._config_of(),
            log_level=self._log_levels.level,
            log_modules=self._log_levels.modules,
            trust=self._state.trust(),
        )
        worker.channel.post(start, self._shared)
        worker.channel.post_lazily(iter(say.registry_parts(tuple(self._state.objects()), ())))
        for credentials in self._state.credentials():
            worker.channel.post(svid_message(credentials))
        self.pods.hand_over_all(worker)
        worker.channel.post(say.StateComplete())

    def _config_of(self) -> Config:
        """The bounds of the node, divided: a worker knows only what it has accepted itself."""
        proxy = self._config.proxy
        share = max(1, proxy.max_pending_handshakes // self._count)
        return replace(self._config, proxy=replace(proxy, max_pending_handshakes=share))

    async def _look_after(self) -> None:
        silences: dict[WorkerProcess, int] = {}
        while True:
            await trio.sleep(_LOOK_S)
            for worker in list(self._running.values()):
                try:
                    await self._hear(worker, say.Topic.COUNTS, deadline_s=_SILENCE_S)
                    silences.pop(worker, None)
                except NoAnswer:
                    silences[worker] = silences.get(worker, 0) + 1
                    if silences[worker] >= _MOST_SILENCES and self._running.get(worker.number) is worker:
                        _log.error("worker %d does not answer, killing it", worker.number)
                        worker.kill()
            silences = {worker: count for worker, count in silences.items() if worker in self._running.values()}

    # -- what workers say -------------------------------------------------------

    def _handle(self, worker: WorkerProcess, message: say.Message, descriptors: list[int]) -> None:
        match message:
            case say.Ready():
                worker.ready = True
                self._pending.discard(worker.number)
                _log.info("worker %d is ready", worker.number)
            case say.PodServed(uid=uid):
                self.pods.served_by(uid, worker.number)
            case say.PodClosed(uid=uid):
                self.pods.closed_by(uid, worker.number)
            case say.IdentityAsked(number=number, identity=identity):
                assert self._nursery is not None
                self._nursery.start_soon(self._answer_identity, worker, number, identity)
            case TunnelShared() | SharedTunnelEnded() | PassOn() | Taken():
                self.passing.hear(worker, message, descriptors)
            case say.Answer(number=0, rows=rows):
                self.figures.take(worker.number, say.Topic.METRICS, rows)
                self.figures.take(worker.number, say.Topic.COUNTS, rows)
            case _:
                pass  # the answer to a question that nobody waits for any more

    async def _answer_identity(self, worker: WorkerProcess, number: int, identity: SpiffeId) -> None:
        answer = say.IdentityAnswered(number=number, reason=None, detail="")
        try:
            await self._identities.wait_for(identity)
        except ConnectionFailure as failure:
            answer = replace(answer, reason=failure.reason, detail=failure.detail)
        worker.channel.post(answer)

    # -- what is told to all ------------------------------------------------------

    def update(self, update: Update) -> None:
        """The registry has taken a step."""
        frames = [say.encode_message(part) for part in say.registry_parts(update.upserts, update.deletes)]
        for worker in self._running.values():
            for frame in frames:
                worker.channel.post_frame(frame)

    def trust_changed(self) -> None:
        """Other roots or revocations are in force."""
        self._tell_all(say.TrustChanged(trust=self._state.trust()))

    def rotated(self, identity: SpiffeId) -> None:
        """``Identities.on_rotated``."""
        credentials = self._identities.current(identity)
        self._tell_all(say.SvidGone(identity=identity) if credentials is None else svid_message(credentials))

    def set_log_levels(self, levels: LogLevels) -> None:
        """Also of workers that are started later."""
        self._log_levels = say.LogLevel(level=levels.level, modules=dict(levels.modules))
        self._tell_all(self._log_levels)

    def start_profile(self, seconds: float) -> None:
        """Let each worker sample its own threads."""
        self._tell_all(say.StartProfile(seconds=seconds))

    def refresh_logs(self) -> None:
        """Let them follow files that were renamed."""
        self._tell_all(say.RefreshLogs())

    def drain(self) -> None:
        """Accept nothing more; each worker ends when its last connection has."""
        self._draining.set()
        self._tell_all(say.Drain())

    def cut_all(self, reason: CloseReason, detail: str) -> None:
        """Cut what is left."""
        self._tell_all(say.CutAll(reason=reason, detail=detail))
        if self._nursery is not None:
            self._nursery.start_soon(self._kill_late)

    async def _kill_late(self) -> None:
        await trio.sleep(_AFTER_CUT_S)
        for worker in self._running.values():
            _log.error("worker %d has not ended %g s after its connections were cut", worker.number, _AFTER_CUT_S)
            worker.kill()

    def _tell_all(self, message: say.ToWorker) -> None:
        frame = say.encode_message(message)
        for worker in self._running.values():
            worker.channel.post_frame(frame)

    async def settled(self) -> None:
        """Return when every worker has taken in what was told so far.

        Answers are in order: one that has come says so.  A worker that gives none
        is ended before long, and the next one begins with the state of that moment.
        """
        for worker in list(self._running.values()):
            while not worker.ended.is_set():
                try:
                    await worker.ask(say.Topic.COUNTS, deadline_s=_SILENCE_S)
                    break
                except NoAnswer:
                    await trio.lowlevel.checkpoint()

    # -- for people ---------------------------------------------------------------

    async def refresh(self, topic: say.Topic) -> None:
        """Ask every worker, all at once; who does not answer keeps its former figures."""

        async def one(worker: WorkerProcess) -> None:
            try:
                await self._hear(worker, topic, deadline_s=_ANSWER_S)
            except NoAnswer as failure:
                _log.warning("%s", failure)

        async with trio.open_nursery() as nursery:
            for worker in self._running.values():
                nursery.start_soon(one, worker)

    async def _hear(self, worker: WorkerProcess, topic: say.Topic, *, deadline_s: float) -> None:
        """Take a worker's answer into the figures; raises NoAnswer."""
        rows = await worker.ask(topic, deadline_s=deadline_s)
        if self._running.get(worker.number) is worker:  # else its figures have been closed, and another's begun
            self.figures.take(worker.number, topic, rows)

    def not_ready(self) -> list[str]:
        """Why not every worker has been ready since the start, or none is now; nothing if all is well."""
        if self._pending:
            return [f"worker {number} is starting" for number in sorted(self._pending)]
        if not any(worker.ready for worker in self._running.values()):
            return ["no worker process is ready"]
        return []

    def status(self, now: float) -> list[dict[str, object]]:
        """One row a worker, for ``ringfence status``."""
        rows: list[dict[str, object]] = []
        for number in range(1, self._count + 1):
            worker = self._running.get(number)
            rows.append(
                {
                    "worker": number,
                    "pid": worker.pid if worker else None,
                    "state": ("ready" if worker.ready else "starting") if worker else "down",
                    "uptime_s": round(now - worker.started_at, 1) if worker else None,
                    "connections": self.figures.count(OPEN, worker=number),
                    "resident_bytes": self.figures.count(RESIDENT_BYTES, worker=number),
                }
            )
        return rows

    @property
    def crashes(self) -> int:
        """Workers that ended by themselves since the agent started."""
        return self._restarts.total


def _exit_text(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
