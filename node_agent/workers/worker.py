"""The composition root of a worker process: the data path, fed through the channel.

A worker has the data path of one process (node_agent/data_path.py) and copies of
what it looks at: registry, trust, identities, pods.  It begins with what
``Start`` says, does what it is told in the order in which it is told, and ends

* when it has drained, with exit code 0;
* when its channel ends, because the parent has gone: it cuts its connections,
  writes their records, and is gone within a second;
* by a signal of the kernel's when the parent was killed (__main__.py).

So nothing of it outlives the parent, and the pods' redirected connections are
refused from then on.
"""

import itertools
import logging
import os
import random
import socket
from contextlib import ExitStack
from typing import Final

import trio

from ca.errors import CaError
from ca.manifests import ObjectKey
from ca.spiffe import SpiffeId
from node_agent import process
from node_agent.capture import Adopter, Listeners, open_home
from node_agent.data_path import build_data_path
from node_agent.drain import Drain
from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.identity.credentials import assemble
from node_agent.identity.identities import utc_now
from node_agent.identity.trust import TrustStore
from node_agent.model import Workload
from node_agent.policy import PolicyEngine
from node_agent.proxy.pod import Pod
from node_agent.registry import Registry, Update
from node_agent.registry.changes import RegistryObject
from node_agent.telemetry.debugging.process import ProcessDebugging
from node_agent.telemetry.exports import Exports
from node_agent.telemetry.log_levels import LogLevels, apply
from node_agent.telemetry.logs import Logging
from node_agent.telemetry.metrics import Metrics
from node_agent.telemetry.process_metrics import register_resources
from node_agent.workers import messages as say
from node_agent.workers.answers import answer, last_figures
from node_agent.workers.channel import Channel, Received
from node_agent.workers.handover import Handover
from node_agent.workers.ledger import SharedLedger
from node_agent.workers.received import ReceivedIdentities, key_and_chain
from node_agent.workers.tunnel_messages import PassedOn, TakeTunnel

_log: Final = logging.getLogger("ringfence.worker")

ACCEPTS_A_TURN: Final = 1
"""All workers wait for the same listeners: one that took all that is there would leave nothing to the others."""

_LAST_WORDS_S: Final = 1.0
_LAST_FRAMES_S: Final = 3.0  # a peer that is busy has to read what is before the reason; shorter than the parent waits


class Worker:
    """Every part, wired; ``stack`` closes what has to be closed."""

    def __init__(
        self,
        start: say.Start,
        channel: Channel,
        logs: Logging,
        stack: ExitStack,
        ledger: SharedLedger,
        *,
        exports: Exports,
    ) -> None:
        self._channel = channel
        self._logs = logs
        self._exports = exports
        self._crash: BaseException | None = None
        self._ended = trio.Event()  # there is nothing more to wait for
        self._parent_gone = False

        def relay_crashed(error: BaseException) -> None:
            self._crash = error
            self._ended.set()

        config = start.config
        trust = say.unpack_trust(start.trust)
        self._trust = TrustStore(trust_domain=config.agent.trust_domain, roots=())
        self._trust.take(trust)
        self._metrics = Metrics()
        logs.register(self._metrics)
        exports.register(self._metrics)
        register_resources(self._metrics)
        self._drain = Drain()
        self._registry = Registry(config.agent.trust_domain)
        self._policies = PolicyEngine()
        self._identities = ReceivedIdentities(ask=self._ask_identity, utc_now=utc_now)
        self._shares = config.proxy.share_tunnels
        self._handover = Handover(channel)
        self._data_path = build_data_path(
            config=config,
            registry=self._registry,
            engine=self._policies,
            identities=self._identities,
            trust=self._trust,
            drain=self._drain,
            metrics=self._metrics,
            rng=random.SystemRandom(),
            on_relay_crash=relay_crashed,
            stack=stack,
            accepts_a_turn=ACCEPTS_A_TURN,
            run=start.run,
            ledger=ledger,
            spans=exports.spans,
            elsewhere=self._handover if self._shares and start.workers > 1 else None,
        )
        self._debugging = ProcessDebugging()
        apply(LogLevels(level=start.log_level, modules=start.log_modules))
        home = open_home()
        stack.callback(os.close, home)
        self._networks = Adopter(pins=config.capture.pins, home=home, stack=stack)
        self._rings = itertools.count(1)
        self._update: tuple[list[RegistryObject], list[ObjectKey]] = ([], [])
        self._pods: dict[str, tuple[Pod, trio.CancelScope]] = {}
        self._waiting: dict[int, tuple[trio.Event, list[ConnectionFailure]]] = {}
        self._numbers = itertools.count(1)

    async def run(self, first: list[Received]) -> int:
        """Serve until drained or the parent's end; returns the exit code.  ``first`` came with ``Start``."""
        async with trio.open_nursery() as services:
            services.start_soon(self._write)
            services.start_soon(self._data_path.run)
            async with trio.open_nursery() as pods:
                pods.start_soon(self._obey, first, services, pods)
                await self._ended.wait()
                if self._parent_gone:
                    self._stop_accepting()
                    self._data_path.live.cut_all(CloseReason.INTERNAL_ERROR, "the agent's main process has ended")
                    with trio.move_on_after(_LAST_WORDS_S):
                        await self._data_path.live.wait_until_none()
                pods.cancel_scope.cancel()
            with trio.move_on_after(_LAST_WORDS_S if self._parent_gone else _LAST_FRAMES_S):
                await self._data_path.relay.finish()
            if not self._parent_gone:
                self._channel.post(
                    last_figures(data_path=self._data_path, metrics=self._metrics, debugging=self._debugging)
                )
                with trio.move_on_after(_LAST_WORDS_S):
                    await self._channel.flush()
            services.cancel_scope.cancel()
        if self._crash is not None:
            _log.error("the relay ended by a bug: %r", self._crash)
        return 1 if self._crash is not None or self._parent_gone else 0

    async def _write(self) -> None:
        try:
            await self._channel.write()
        except OSError:
            pass  # ``_obey`` hears of it too

    async def _obey(self, first: list[Received], services: trio.Nursery, pods: trio.Nursery) -> None:
        received = first  # may be none
        while True:
            for message, descriptors in received:
                self._do(message, descriptors, services, pods)
                # The keys of a whole node, and a big registry, take longer than a connection should wait.
                await trio.lowlevel.checkpoint()
            try:
                received = await self._channel.receive()
            except OSError as error:
                _log.debug("the channel broke: %s", error)
                break
            if not received:
                break
        self._parent_gone = True
        self._ended.set()

    def _do(self, message: say.Message, descriptors: list[int], services: trio.Nursery, pods: trio.Nursery) -> None:
        match message:
            case say.RegistryPart() | say.TrustChanged() | say.SvidIssued() | say.SvidGone():
                self._take_state(message)
            case say.StateComplete():
                process.tidy_up()
                process.let_go_of_libraries()
                _log.debug("the first state is complete")
                self._channel.post(say.Ready())
            case say.ServePod() | say.PodChanged() | say.EndPod():
                self._do_pod(message, descriptors, services, pods)
            case TakeTunnel() | PassedOn():
                pod, _ = self._pods.get(message.uid, (None, None)) if isinstance(message, TakeTunnel) else (None, None)
                self._handover.hear(message, descriptors, pod=pod, serve=self._data_path.server.serve_passed)
            case say.Question():
                services.start_soon(self._answer, message)
            case say.LogLevel(level=level, modules=modules):
                apply(LogLevels(level=level, modules=modules))
            case say.StartProfile(seconds=seconds):
                self._start_profile(seconds)
            case say.RefreshLogs():
                self._logs.refresh()
            case say.Drain():
                self._stop_accepting()
                services.start_soon(self._end_when_idle)
            case say.CutAll(reason=reason, detail=detail):
                self._data_path.live.cut_all(reason, detail)
            case say.IdentityAnswered():
                self._hear_identity(message)
            case _:
                raise AssertionError(f"{type(message).__name__} is not for a worker")

    def _do_pod(
        self,
        message: say.ServePod | say.PodChanged | say.EndPod,
        descriptors: list[int],
        services: trio.Nursery,
        pods: trio.Nursery,
    ) -> None:
        match message:
            case say.ServePod(workload=workload, capture=mode):
                self._serve(workload, mode, descriptors, pods)
            case say.PodChanged(workload=workload):
                if workload.uid in self._pods:
                    self._pods[workload.uid][0].workload = workload
            case say.EndPod(uid=uid, reason=reason, detail=detail):
                self._end(uid, reason, detail, services)

    def _take_state(self, message: say.RegistryPart | say.TrustChanged | say.SvidIssued | say.SvidGone) -> None:
        match message:
            case say.RegistryPart():
                self._take_part(message)
            case say.TrustChanged(trust=trust):
                self._trust.take(say.unpack_trust(trust))
            case say.SvidIssued():
                self._take_svid(message)
            case say.SvidGone(identity=identity):
                self._identities.drop(identity)

    def _take_part(self, part: say.RegistryPart) -> None:
        upserts, deletes = self._update
        upserts += part.upserts
        deletes += part.deletes
        if part.is_last:
            self._update = ([], [])
            changes = self._registry.apply(Update(upserts=tuple(upserts), deletes=tuple(deletes)))
            self._policies.apply(changes.policies, gone=changes.workloads_removed)
            self._data_path.follow(changes)

    def _take_svid(self, message: say.SvidIssued) -> None:
        try:
            credentials = assemble(
                identity=message.identity,
                own=key_and_chain(message),
                roots=self._trust.every_root,
                ring=next(self._rings),
                shares=self._shares,
            )
        except CaError as error:
            _log.error("the SVID of %s can not be used: %s", message.identity, error)
            self._identities.drop(message.identity)
        else:
            self._identities.put(credentials)

    def _hear_identity(self, answer: say.IdentityAnswered) -> None:
        waiting = self._waiting.pop(answer.number, None)
        if waiting is not None:
            arrived, failure = waiting
            if answer.reason is not None:
                failure.append(ConnectionFailure(answer.reason, answer.detail))
            arrived.set()

    async def _ask_identity(self, identity: SpiffeId) -> ConnectionFailure | None:
        number = next(self._numbers)
        arrived, failure = self._waiting[number] = (trio.Event(), [])
        self._channel.post(say.IdentityAsked(number=number, identity=identity))
        try:
            await arrived.wait()
        finally:
            self._waiting.pop(number, None)
        return failure[0] if failure else None

    async def _answer(self, question: say.Question) -> None:
        await answer(
            question,
            self._channel,
            data_path=self._data_path,
            metrics=self._metrics,
            debugging=self._debugging,
            problems=[*self._logs.problems(), *self._exports.problems()],
        )

    def _start_profile(self, seconds: float) -> None:
        try:
            self._debugging.start_profile(seconds)
        except (RuntimeError, ValueError) as error:  # the parent is not in the middle of one; we may be
            _log.debug("no profile: %s", error)

    # -- pods ---------------------------------------------------------------------

    def _serve(self, workload: Workload, mode: str, descriptors: list[int], pods: trio.Nursery) -> None:
        namespace, *listeners = descriptors
        pod = Pod(
            workload=workload,
            network=self._networks.network(mode, namespace, workload),
            listeners=Listeners.of([socket.socket(fileno=fd) for fd in listeners]),
        )
        accepting = trio.CancelScope()
        if self._drain.begun.is_set():
            accepting.cancel()
        self._pods[workload.uid] = pod, accepting
        pods.start_soon(self._data_path.server.serve, pod, accepting)
        self._channel.post(say.PodServed(uid=workload.uid))

    def _end(self, uid: str, reason: CloseReason, detail: str, services: trio.Nursery) -> None:
        held = self._pods.pop(uid, None)
        if held is not None:
            pod, _ = held
            self._data_path.server.cut(pod, reason, detail)
            pod.gone.set()
            services.start_soon(self._tell_closed, pod)

    async def _tell_closed(self, pod: Pod) -> None:
        await pod.closed.wait()
        self._channel.post(say.PodClosed(uid=pod.workload.uid))

    def _stop_accepting(self) -> None:
        self._drain.begin()
        for _, accepting in self._pods.values():
            accepting.cancel()

    async def _end_when_idle(self) -> None:
        await self._data_path.server.wait_until_none()
        self._ended.set()


async def run_worker(
    start: say.Start,
    first: list[Received],
    channel: Channel,
    logs: Logging,
    ledger: SharedLedger,
    *,
    exports: Exports,
) -> int:
    """Be the worker that ``start`` describes; returns the exit code."""
    with ExitStack() as stack:
        worker = Worker(start, channel, logs, stack, ledger, exports=exports)
        return await worker.run(first)
