"""The composition root: builds every part, starts them in order, drains them in reverse.

Only this file, own_identity.py, carrier_building.py, data_path.py and the workers' own root
build things; everything else receives what it needs.  Start-up order is the order of the lines in ``_run``:

    logs > configuration > registry (manifests, DNS) > identities > pods (capture, stories) > metrics, readiness, admin

SIGTERM or SIGINT begins draining: nothing new is accepted, running connections
get ``drain_grace_s``, then are cut with the reason ``drained``.
"""

import logging
import random
import signal
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from ca.http_server import HttpServer, Routes
from ca.manifests import DirectoryState
from node_agent import __version__, process
from node_agent import config as configuration
from node_agent.agent_gauges import register_gauges
from node_agent.capture import choose
from node_agent.carrier_building import CarrierParts, build_in_process, build_in_workers
from node_agent.config import Config, HostPort
from node_agent.drain import Drain
from node_agent.errors import AgentError, CloseReason
from node_agent.explanation.routes import explanation_routes
from node_agent.export_config import Sink
from node_agent.identity import prefer_aes128
from node_agent.identity.identities import utc_now
from node_agent.model import Workload
from node_agent.own_identity import build_identity
from node_agent.policy import PolicyEngine
from node_agent.proxy.pods import Pods
from node_agent.registry import Registry, Update
from node_agent.registry.changes import RegistryObject
from node_agent.registry.dns_source import DnsSource
from node_agent.registry.file_source import FileSource
from node_agent.registry.good_copies import GoodCopies
from node_agent.report import Report
from node_agent.sight.service import Sight
from node_agent.sight.shown_config import config_routes
from node_agent.sight.traffic import traffic_routes
from node_agent.telemetry.admin import admin_routes, readiness_routes
from node_agent.telemetry.debugging.process import ProcessDebugging
from node_agent.telemetry.debugging.routes import debug_routes
from node_agent.telemetry.exports import Exports, check_exports
from node_agent.telemetry.log_levels import LogControl
from node_agent.telemetry.logs import Logging, configure_logging, make_stream_locks
from node_agent.telemetry.metrics import Metrics
from node_agent.telemetry.process_metrics import register_process_metrics
from node_agent.telemetry.scrape import metrics_preparation, metrics_routes
from node_agent.telemetry.unix_socket import UnixListener

if TYPE_CHECKING:
    from node_agent.explanation.service import Explanations
    from node_agent.workload_api.endpoint import WorkloadApi

_log = logging.getLogger("ringfence.agent")

_LAST_WORDS_S: Final = 3.0  # to tell the peers that we cut their connections; a busy one has to read all before it


def main(path: Path) -> int:
    """Run the agent with the configuration at ``path``; returns the exit code.

    Raises AgentError when it can not start, or can not go on.
    """
    config = configuration.load(path)
    stream_locks = make_stream_locks() if config.agent.workers > 1 else None
    to_stdout = Sink.STDOUT in config.access_log.sinks
    logs = configure_logging(config.agent.log_level, locks=stream_locks, records_to_stdout=to_stdout)
    exports: Exports | None = None
    try:
        process.settle()
        if stream_locks is None:
            exports = Exports(config, logs)
        else:
            check_exports(config)
        prefer_aes128()
        trio.run(_run, config, logs, exports, stream_locks)
    finally:
        if exports is not None:
            exports.close()
        logs.close()
    return 0


async def _run(config: Config, logs: Logging, exports: Exports | None, stream_locks: tuple[int, int] | None) -> None:
    with ExitStack() as stack:
        agent = _Agent(config, logs, exports, stack, stream_locks)
        await agent.run()


class _Agent:
    """Every part, wired; ``stack`` closes what has to be closed.

    ``stream_locks``: there are worker processes; ``exports``: there are none.
    """

    def __init__(
        self,
        config: Config,
        logs: Logging,
        exports: Exports | None,
        stack: ExitStack,
        stream_locks: tuple[int, int] | None,
    ) -> None:
        self._config = config
        self._logs = logs
        self._crash: AgentError | None = None
        self._crashed = trio.Event()
        rng = random.SystemRandom()
        metrics = Metrics()
        logs.register(metrics)
        if exports is not None:
            exports.register(metrics)
        register_process_metrics(metrics, version=__version__)
        self._drain = Drain()
        self._registry = Registry(config.agent.trust_domain)
        self._policies = PolicyEngine()
        self._source = FileSource(
            config.registry.manifests_dir, copies=GoodCopies(config.agent.state_dir / "manifests")
        )
        self._dns = DnsSource(servers=config.dns.servers, draw=rng.random, on_update=self._take_names)
        parts = build_identity(config, rng)
        self._identities, self._trust, self._trust_watch = parts.identities, parts.trust, parts.watch
        chosen = choose(config.capture.mode, pins=config.capture.pins, netns_path=self._netns_path, stack=stack)
        carrier_parts = CarrierParts(
            config=config,
            chosen=chosen,
            registry=self._registry,
            identities=self._identities,
            trust=self._trust,
            metrics=metrics,
            rng=rng,
            on_crash=self._crashes,
        )
        carriage = (
            build_in_process(
                carrier_parts,
                engine=self._policies,
                drain=self._drain,
                exports=exports,
                netns_path=self._netns_path,
                stack=stack,
            )
            if stream_locks is None
            else build_in_workers(carrier_parts, objects=self._objects, stream_locks=stream_locks)
        )
        self._carrier, self._connects = carriage.carrier, carriage.connects
        self._slim_down = process.SlimDown()
        self._identities.on_rotated.append(lambda _: self._slim_down.issued())
        self._trust_watch.settled = self._carrier.settled
        self._pods = Pods(capture=chosen.capture, server=self._carrier.server, drain=self._drain)
        log = LogControl(config.agent.log_level)
        log.on_changed.append(self._carrier.set_log_levels)
        self._report = Report(
            config=config,
            registry=self._registry,
            identities=self._identities,
            trust=self._trust,
            loads=self._carrier.loads,
            pods=self._pods,
            tunnels=self._carrier.tunnels,
            connections=self._carrier.connections,
            drain=self._drain,
            workers=self._carrier.workers,
            not_carrying=self._carrier.not_ready,
            log=log,
            warnings=lambda: [
                *([] if chosen.warning is None else [chosen.warning]),
                *carriage.problems(),
                *logs.problems(),
                *self._identities.warnings(),
                *self._trust_watch.warnings(),
                *self._registry.faults(),
                *self._registry.egress_problems(),
                *self._unresolved(),
            ],
            at_connect=self._connects.describe,
        )
        self._workload_api: WorkloadApi | None = None
        if config.workload_api.enabled:
            from node_agent.workload_api.building import build_workload_api  # noqa: PLC0415  # it costs memory

            self._workload_api = build_workload_api(
                path=config.workload_api_socket,
                identities=self._identities,
                trust=self._trust,
                pods=self._pods,
                metrics=metrics,
                stack=stack,
            )
        register_gauges(
            metrics, report=self._report, identities=self._identities, watch=self._trust_watch, trust=self._trust
        )
        self._metrics_server = HttpServer(
            metrics_routes(self._carrier.families), prepare=metrics_preparation(self._carrier.prepare)
        )
        self._readiness_server = HttpServer(readiness_routes(self._report.sources()))
        self._sight = Sight(
            config=config,
            report=self._report,
            registry=self._registry,
            carrier=self._carrier,
            identities=self._identities,
            own=parts.own,
            trust=self._trust,
            metrics=metrics,
            utc_now=utc_now,
        )
        self._admin_server = HttpServer(
            {**admin_routes(self._report.sources()), **self._sight.routes, **self._operator_routes()},
            prepare=metrics_preparation(self._sight.prepare),
        )
        self._admin_listener = stack.enter_context(UnixListener(config.agent.runtime_dir / "agent.sock"))

    def _operator_routes(self) -> Routes:
        return {
            **traffic_routes(
                node=self._config.agent.node,
                families=self._carrier.families,
                endpoints=self._report.endpoints,
                recent=self._carrier.connections.recent,
                now=trio.current_time,
            ),
            **metrics_routes(self._carrier.families),
            **config_routes(self._config),
            **explanation_routes(self._explanations),
            **debug_routes(ProcessDebugging(), self._carrier),
        }

    def _explanations(self) -> "Explanations":
        from node_agent.explanation.service import Explanations  # noqa: PLC0415  # not before somebody asks

        return Explanations(
            config=self._config,
            registry=self._registry,
            engine=self._policies,
            trust=self._trust,
            endpoint_rows=self._report.endpoints,
            directory=lambda: self._report.directory,
            live=self._carrier.connections.live,
            archive=self._carrier.connections.archive,
            families=self._carrier.families,
            at_connect=self._connects.describe,
        )

    def _objects(self) -> Iterable[RegistryObject]:
        return chain(self._report.directory.objects.values(), self._dns.objects())

    def _crashes(self, why: AgentError) -> None:
        self._crash = why
        self._crashed.set()

    async def run(self) -> None:
        """Serve until a signal, then drain; raises AgentError."""
        # Before the nursery, which would wrap what they raise into a group.
        listeners = [
            await _listen(self._config.listen.metrics, "metrics"),
            await _listen(self._config.listen.readiness, "readiness"),
        ]
        sight = self._config.listen.sight
        sight_listeners = await _listen(sight, "sight") if sight is not None else []
        async with trio.open_nursery() as services:
            signals = await services.start(self._wait_for_signal)
            services.start_soon(self._end_if_crashed, services.cancel_scope)
            services.start_soon(self._slim_down.run, lambda: self._report.ready()[0])
            services.start_soon(self._readiness_server.run, listeners[1])
            services.start_soon(self._metrics_server.run, listeners[0])
            services.start_soon(self._admin_server.run, [self._admin_listener.listener])
            if sight_listeners:
                services.start_soon(self._sight.run, sight_listeners)
            await services.start(self._identities.run)
            services.start_soon(self._trust_watch.run)
            async with trio.open_nursery() as serving:
                serving.start_soon(self._drain_on, signals)
                await serving.start(self._load_registry)
                await serving.start(self._dns.run)
                await services.start(self._carrier.run)
                services.start_soon(self._connects.run)
                if self._workload_api is not None:
                    services.start_soon(self._workload_api.run)
                await self._pods.run()
                with trio.move_on_after(_LAST_WORDS_S):
                    await self._carrier.finish()
                serving.cancel_scope.cancel()
            services.cancel_scope.cancel()
        if self._crash is not None:
            raise self._crash
        _log.info("drained, leaving")

    async def _load_registry(self, *, task_status: trio.TaskStatus[None]) -> None:
        await self._source.run(self._take_update, task_status=task_status)

    def _take_update(self, update: Update, directory: DirectoryState) -> None:
        """Let the parts follow what the manifests say; identities first, because pods need them."""
        self._apply(update)
        local = self._registry.workloads_on(self._config.agent.node)
        self._identities.set_wanted(frozenset(each.identity for each in local if each.enrolled))
        self._pods.want(local, is_complete=directory.directory_problem is None and not directory.broken)
        self._report.directory = directory
        if self._report.loaded_at is None:
            process.tidy_up()
        self._report.loaded_at = trio.current_time()
        self._dns.want(self._registry.external_names())

    def _take_names(self, update: Update) -> None:
        self._apply(update)

    def _apply(self, update: Update) -> None:
        changes = self._registry.apply(update)
        self._policies.apply(changes.policies, gone=changes.workloads_removed)
        self._connects.follow(changes)
        self._carrier.updated(update, changes)

    def _unresolved(self) -> Iterator[str]:
        for name, why in self._dns.problems():
            yield f"{name} can not be resolved: {why} (for {', '.join(self._registry.users_of(name))})"

    async def _wait_for_signal(self, *, task_status: trio.TaskStatus[trio.Event]) -> None:
        asked = trio.Event()
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
            task_status.started(asked)
            async for number in received:
                if number == signal.SIGHUP:  # logrotate has renamed a file
                    self._logs.refresh()
                    self._carrier.refresh_logs()
                    continue
                _log.info("%s: draining", signal.Signals(number).name)
                asked.set()

    async def _drain_on(self, asked: trio.Event) -> None:
        await asked.wait()
        self._drain.begin()
        self._carrier.drain()
        await trio.sleep(self._config.agent.drain_grace_s)
        self._carrier.cut_all(
            CloseReason.DRAINED, f"the agent is going down, {self._config.agent.drain_grace_s:g} s are over"
        )

    async def _end_if_crashed(self, scope: trio.CancelScope) -> None:
        await self._crashed.wait()
        scope.cancel()

    def _netns_path(self, workload: Workload) -> Path:
        namespace, name = workload.name
        return Path(self._config.capture.netns_path.format(namespace=namespace, name=name, uid=workload.uid))


async def _listen(address: HostPort, what: str) -> list[trio.SocketListener]:
    try:
        return await trio.open_tcp_listeners(address.port, host=address.host or None)
    except OSError as error:
        raise AgentError(f"[listen] {what} = {address}: cannot listen: {error.strerror or error}") from error
