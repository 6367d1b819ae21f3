"""The pods that this node serves: started when their manifest comes, ended when it goes.

    wanted --namespace there--> opened --plumbed--> serving --manifest gone--> ended
       ^            |no                    |failed
       +--- retry --+----------------------+

A pod is keyed by uid: one that was made again under its old name and address is
another pod, and so is one that changed its identity or its addresses.  Ending a
pod closes every descriptor that reaches into it, or its namespace would outlive
it.  A local pod that is not enrolled is set free once: an agent that ran before
may have left its rules.

An enrolled pod in which we can not listen gets the rules nevertheless: its
connections fail, they do not leave in plaintext.
"""

import logging
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Final

import trio

from node_agent.capture import Capture, CaptureJob, PlumbingError, WorkloadNetwork
from node_agent.drain import Drain
from node_agent.errors import CloseReason
from node_agent.model import Workload
from node_agent.proxy.pod import Pod
from node_agent.proxy.serving import PodServer

_log = logging.getLogger("ringfence.pods")

_RETRY_S: Final = 0.2
_PLUMBING_PAUSE_S: Final = 2.0  # after one that failed: each attempt is a process


class Pods:
    """Serves the wanted workloads; ``want`` says which, ``run`` does it.

    ``on_changed`` holds callables that are called when ``workload_in`` may
    have another answer.  They must not raise or block.
    """

    def __init__(
        self,
        *,
        capture: Capture,
        server: PodServer,
        drain: Drain,
    ) -> None:
        self._capture = capture
        self._server = server
        self._drain = drain
        self._wanted: dict[str, Workload] = {}
        self._unwanted: dict[str, Workload] = {}
        self._freed: set[str] = set()
        self._serving: dict[str, tuple[Pod, trio.CancelScope]] = {}
        self._shut: set[str] = set()  # have their rules, but not our listeners
        self._errors: dict[str, str] = {}
        self._plumb_from: dict[str, float] = {}
        self._changed = trio.Event()
        self.on_changed: list[Callable[[], None]] = []

    def want(self, workloads: Iterable[Workload], *, is_complete: bool = True) -> None:
        """Serve exactly the enrolled ones among the node's ``workloads`` from now on.

        ``is_complete``: all that was declared could be read, so whoever is not among them is really gone.
        """
        before = self._wanted
        self._wanted = {}
        self._unwanted = {}
        for workload in workloads:
            (self._wanted if workload.enrolled else self._unwanted)[workload.uid] = workload
        self._capture.want(self._wanted.values(), is_complete=is_complete)
        self._changed.set()
        if self._wanted != before:
            self._announce()

    def workload_in(self, netns_inode: int) -> Workload | None:
        """The workload that is served in a network namespace; None if there is none, or its time is over.

        A namespace that we serve is open, so nobody else's can have its inode.
        """
        for uid, (pod, _) in self._serving.items():
            if pod.workload.cgroup is None and pod.network.namespace.inode == netns_inode:
                wanted = self._wanted.get(uid)
                return wanted if wanted is not None and _is_same(wanted, pod.workload) else None
        return None

    def workload_holding(self, cgroup: str) -> Workload | None:
        """The workload that is served and whose process has this /proc/PID/cgroup; None if there is none."""
        name = self._capture.holder(cgroup)
        for uid, (pod, _) in self._serving.items():
            if name is not None and pod.workload.cgroup is not None and pod.workload.name == name:
                wanted = self._wanted.get(uid)
                return wanted if wanted is not None and _is_same(wanted, pod.workload) else None
        return None

    def state(self, uid: str) -> tuple[str, str | None]:
        """Return ``serving`` or ``pending`` and why it is not serving yet."""
        if uid in self._serving:
            waits_for = self._server.pending(self._serving[uid][0])
            return ("serving", None) if waits_for is None else ("pending", waits_for)
        return "pending", self._errors.get(uid)

    def pending(self) -> list[str]:
        """What keeps wanted pods from being served, for readiness."""
        states = ((workload, *self.state(uid)) for uid, workload in self._wanted.items())
        return [
            f"pod {workload.name} is not served yet: {why or 'starting'}"
            for workload, state, why in states
            if state != "serving"
        ]

    async def run(self) -> None:
        """Keep what is served equal to what is wanted; ends after draining, when the last connection has."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stop_when_draining, nursery.cancel_scope)
            nursery.start_soon(self._capture.run)
            while True:
                self._changed = trio.Event()
                await self._end_unwanted()
                await self._start_wanted(nursery)
                with trio.move_on_after(_RETRY_S if self._is_incomplete() else float("inf")):
                    await self._changed.wait()

    def _is_incomplete(self) -> bool:
        return not self._wanted.keys() <= self._serving.keys() or not self._unwanted.keys() <= self._freed

    async def _stop_when_draining(self, scope: trio.CancelScope) -> None:
        await self._drain.begun.wait()
        for _, accepting in self._serving.values():
            accepting.cancel()
        await self._server.wait_until_none()
        scope.cancel()

    async def _end_unwanted(self) -> None:
        """End the pods that are gone or became others; returns when nothing of ours is left in them."""
        self._freed &= self._unwanted.keys()
        self._shut &= self._wanted.keys()
        ended = []
        for uid, (pod, _) in list(self._serving.items()):
            wanted = self._wanted.get(uid)
            if wanted is not None and _is_same(wanted, pod.workload):
                if pod.workload is not wanted:
                    pod.workload = wanted
                    self._server.changed(pod)
                continue
            del self._serving[uid]
            _log.info("pod %s is gone, ending its connections", pod.workload.name)
            self._server.cut(pod, CloseReason.WORKLOAD_REMOVED, f"{pod.workload.name} was removed")
            pod.gone.set()
            ended.append(pod)
        for memory in (self._errors, self._plumb_from):
            for uid in memory.keys() - self._wanted.keys() - self._unwanted.keys():
                del memory[uid]
        for pod in ended:
            await pod.closed.wait()

    async def _start_wanted(self, nursery: trio.Nursery) -> None:
        """Open and plumb all pods that are not served yet, in one go."""
        with ExitStack() as unused:
            opened: list[Pod] = []
            shut: list[tuple[Workload, WorkloadNetwork]] = []
            for workload in self._wanted.values():
                if workload.uid not in self._serving and self._may_plumb(workload.uid):
                    self._open(workload, opened, shut, unused)
            freed = self._to_free(unused)
            jobs = [
                CaptureJob(workload=pod.workload, network=pod.network, listeners=pod.listeners, install=True)
                for pod in opened
            ]
            for each, install in ((shut, True), (freed, False)):
                jobs += [
                    CaptureJob(workload=workload, network=network, listeners=None, install=install)
                    for workload, network in each
                ]
            results = iter(await self._capture.apply(jobs) if jobs else ())
            unused.pop_all()
        for pod in opened:
            if self._is_plumbed(pod.workload, next(results)):
                self._serve(nursery, pod)
            else:
                pod.close()
        for workload, network in shut:
            network.close()
            if self._is_plumbed(workload, next(results)):
                self._shut.add(workload.uid)
        for workload, network in freed:
            network.close()
            if self._is_plumbed(workload, next(results)):
                self._freed.add(workload.uid)

    def _open(
        self, workload: Workload, opened: list[Pod], shut: list[tuple[Workload, WorkloadNetwork]], unused: ExitStack
    ) -> None:
        """File a pod under ``opened``, or under ``shut`` if it has to get the rules without us listening."""
        try:
            network = self._capture.open(workload)
        except OSError as error:
            self._failed(workload, str(error.strerror))
            return
        try:
            pod = Pod(workload=workload, network=network, listeners=network.listen())
        except OSError as error:
            self._failed(workload, f"{error.strerror}; until its program stops listening there, its connections fail")
            if workload.uid in self._shut:
                network.close()
            else:
                unused.callback(network.close)
                shut.append((workload, network))
            return
        unused.callback(pod.close)
        opened.append(pod)

    def _to_free(self, unused: ExitStack) -> list[tuple[Workload, WorkloadNetwork]]:
        found: list[tuple[Workload, WorkloadNetwork]] = []
        for uid, workload in self._unwanted.items():
            if uid in self._freed or not self._may_plumb(uid):
                continue
            try:
                network = self._capture.open(workload)
            except OSError:
                self._freed.add(uid)  # nothing there, so nothing of ours in it
            else:
                unused.callback(network.close)
                found.append((workload, network))
        return found

    def _may_plumb(self, uid: str) -> bool:
        return trio.current_time() >= self._plumb_from.get(uid, 0.0)

    def _is_plumbed(self, workload: Workload, error: PlumbingError | None) -> bool:
        if error is not None:
            self._failed(workload, str(error))
            self._plumb_from[workload.uid] = trio.current_time() + _PLUMBING_PAUSE_S
        return error is None

    def _failed(self, workload: Workload, error: str) -> None:
        if self._errors.get(workload.uid) != error:
            _log.warning("pod %s: %s", workload.name, error)
        self._errors[workload.uid] = error

    def _serve(self, nursery: trio.Nursery, pod: Pod) -> None:
        accepting = trio.CancelScope()
        if self._drain.begun.is_set():
            accepting.cancel()
        self._errors.pop(pod.workload.uid, None)
        self._serving[pod.workload.uid] = pod, accepting
        nursery.start_soon(self._server.serve, pod, accepting)
        self._announce()
        _log.info("serving pod %s as %s", pod.workload.name, pod.workload.identity)

    def _announce(self) -> None:
        for call in self.on_changed:
            call()


def _is_same(now: Workload, before: Workload) -> bool:
    """Whether what was proved and bound for ``before`` still holds."""
    return (now.identity, now.addresses) == (before.identity, before.addresses)
