"""Pods that several workers serve together: the ``PodServer`` of ``Pods`` in the parent.

The parent has made the pod's listeners and keeps them, with the pod's namespace,
as long as the pod is there, so that a worker that is started later gets them too.
A pod is closed when every worker has let go of it; one that has ended has.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import trio

from node_agent.errors import CloseReason
from node_agent.proxy.pod import Pod
from node_agent.workers import messages as say
from node_agent.workers.process import WorkerProcess


@dataclass(slots=True, eq=False)
class _Served:
    """One pod, and the workers that have its descriptors; those in ``accepting`` have said so."""

    pod: Pod
    held_by: set[int] = field(default_factory=set)
    accepting: set[int] = field(default_factory=set)
    released: trio.Event = field(default_factory=trio.Event)


class SharedPods:
    """The pods that are served; ``running`` are the workers by number, ``none`` is set when the last has drained."""

    def __init__(self, *, running: Mapping[int, WorkerProcess], none: trio.Event) -> None:
        self._running = running
        self._none = none
        self._pods: dict[str, _Served] = {}

    async def serve(self, pod: Pod, accepting: trio.CancelScope) -> None:
        """Let the workers accept for ``pod`` until draining or its end."""
        served = self._pods[pod.workload.uid] = _Served(pod)
        try:
            for worker in self._running.values():
                self._hand_over(served, worker)
            with accepting:
                await pod.gone.wait()
            pod.listeners.close()  # the workers close theirs: from now on a connect is refused
            await pod.gone.wait()
            while served.held_by:
                await served.released.wait()
        finally:
            if self._pods.get(pod.workload.uid) is served:
                del self._pods[pod.workload.uid]
            pod.close()
            pod.closed.set()

    def pending(self, pod: Pod) -> str | None:
        """Accepted for as soon as every worker that is ready does."""
        ready = {worker.number for worker in self._running.values() if worker.ready}
        if not ready:
            return "no worker process is ready"
        served = self._pods.get(pod.workload.uid)
        missing = ready - served.accepting if served is not None else ready
        return f"worker {min(missing)} does not accept for it yet" if missing else None

    def changed(self, pod: Pod) -> None:
        """``pod.workload`` was replaced."""
        self._tell_all(say.PodChanged(workload=pod.workload))

    def cut(self, pod: Pod, reason: CloseReason, detail: str) -> None:
        """Cut every connection of a pod, which is gone."""
        self._tell_all(say.EndPod(uid=pod.workload.uid, reason=reason, detail=detail))

    async def wait_until_none(self) -> None:
        """Return when every worker has drained and ended."""
        await self._none.wait()

    def _hand_over(self, served: _Served, worker: WorkerProcess) -> None:
        pod = served.pod
        served.held_by.add(worker.number)
        served.released = trio.Event()
        listeners = [listener.fileno() for listener in pod.listeners.in_order]
        worker.channel.post(
            say.ServePod(workload=pod.workload, listeners=len(listeners), capture=pod.network.mode),
            [pod.network.namespace.fd, *listeners],
        )

    def _released(self, served: _Served, number: int) -> None:
        served.held_by.discard(number)
        served.accepting.discard(number)
        if not served.held_by:
            served.released.set()

    # -- what the workers do --------------------------------------------------------

    def hand_over_all(self, worker: WorkerProcess) -> None:
        """Let a worker that has just been started accept for every pod."""
        for served in self._pods.values():
            if not served.pod.gone.is_set():
                self._hand_over(served, worker)

    def served_by(self, uid: str, number: int) -> None:
        """A worker accepts for a pod now."""
        if uid in self._pods:
            self._pods[uid].accepting.add(number)

    def closed_by(self, uid: str, number: int) -> None:
        """A worker has let go of a pod."""
        if uid in self._pods:
            self._released(self._pods[uid], number)

    def worker_ended(self, number: int) -> None:
        """A worker has let go of everything."""
        for served in list(self._pods.values()):
            self._released(served, number)

    def _tell_all(self, message: say.ToWorker) -> None:
        frame = say.encode_message(message)
        for worker in self._running.values():
            worker.channel.post_frame(frame)
