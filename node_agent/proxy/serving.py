"""Serve pods in this process: accept on their listeners, run a story for each connection."""

import errno
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Final, Protocol

import trio

from node_agent.capture import peer_address
from node_agent.errors import CloseReason
from node_agent.model import PeerAddress
from node_agent.proxy.crew import Crew
from node_agent.proxy.inbound import Inbound
from node_agent.proxy.live import LiveConnections
from node_agent.proxy.outbound import Outbound
from node_agent.proxy.pod import Accepted, Pod
from node_agent.tunnel import TunnelClient

_log = logging.getLogger("ringfence.pods")

ACCEPTS_A_TURN: Final = 64
_OUT_OF_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_ACCEPT_BACKOFF_S: Final = 0.1
_MOST_WAITING: Final = 4096  # the backlog of a listener (capture/sockets.py)

Handler = Callable[[Pod, socket.socket, PeerAddress, trio.CancelScope], Awaitable[None]]


class PodServer(Protocol):
    """Who serves the pods that ``Pods`` has opened: this process, or worker processes."""

    async def serve(self, pod: Pod, accepting: trio.CancelScope) -> None:
        """Accept until ``accepting`` is cancelled or the pod is gone; return when its connections have ended.

        Takes the pod over: closes it and sets ``pod.closed``, however it ends.
        """

    def pending(self, pod: Pod) -> str | None:
        """What keeps connections of a pod that is being served from being accepted; None if nothing does."""

    def changed(self, pod: Pod) -> None:
        """``pod.workload`` was replaced."""

    def cut(self, pod: Pod, reason: CloseReason, detail: str) -> None:
        """Cut every connection of a pod that is about to be ``gone``."""

    async def wait_until_none(self) -> None:
        """Return when no connection of any pod is alive."""


class LocalServer:
    """A :class:`PodServer` with everything in this process.

    ``accepts_a_turn``: how many connections are taken from one listener before
    the stories have their turn.
    """

    def __init__(
        self,
        *,
        outbound: Outbound,
        inbound: Inbound,
        tunnels: TunnelClient,
        live: LiveConnections,
        accepts_a_turn: int = ACCEPTS_A_TURN,
    ) -> None:
        self._handlers: dict[str, Handler] = {  # by the fields of ``Listeners``
            "outbound": outbound.handle,
            "inbound_plaintext": inbound.handle_plaintext,
            "tunnel": inbound.handle_tunnel,
        }
        self._inbound = inbound
        self._tunnels = tunnels
        self._live = live
        self._accepts_a_turn = accepts_a_turn
        self._serving: set[Pod] = set()
        self._crews: dict[Pod, Crew] = {}  # of those that accept
        self._accepting = 0  # pods whose listeners are open
        self._none_accepts = trio.Event()

    async def serve(self, pod: Pod, accepting: trio.CancelScope) -> None:
        """Accept until draining or the pod's end, then wait for (or end) its connections."""
        self._serving.add(pod)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_with_pod, pod, nursery.cancel_scope)
                connections = Crew(nursery)
                self._accepting += 1
                self._crews[pod] = connections
                try:
                    with accepting:
                        async with trio.open_nursery() as listeners:
                            for kind, listener in pod.listeners.by_kind():
                                listeners.start_soon(self._accept, pod, listener, self._handlers[kind], connections)
                    if not pod.gone.is_set():
                        self._accept_the_last(pod, connections)
                finally:
                    del self._crews[pod]
                    pod.listeners.close()  # from now on a connect is refused
                    self._accepting -= 1
                    if not self._accepting:
                        self._none_accepts.set()
                        self._none_accepts = trio.Event()
        finally:
            self._serving.discard(pod)
            self._tunnels.forget(pod.workload.uid)
            pod.close()
            pod.closed.set()

    def serve_passed(self, pod: Pod, connection: socket.socket, peer: PeerAddress, accepted_at: float) -> None:
        """Serve a tunnel that another process has accepted for ``pod``; reset it if we do not accept any more.

        Takes ``connection`` over, which does not block.
        """
        crew = self._crews.get(pod)
        if crew is None or pod.gone.is_set():
            with Accepted(connection):
                return
        crew.serve(partial(self._inbound.handle_passed, pod, connection, peer, accepted_at))

    def listeners(self) -> Iterator[tuple[str, socket.socket]]:
        """Those of all pods, with what each is for."""
        for pod in self._serving:
            yield from pod.listeners.by_kind()

    def pods(self) -> list[Pod]:
        """Those that are served now."""
        return list(self._serving)

    def pending(self, _pod: Pod) -> None:
        """Nothing: it accepts from the moment it serves."""

    def changed(self, pod: Pod) -> None:
        """The stories look at ``pod.workload`` themselves."""

    def cut(self, pod: Pod, reason: CloseReason, detail: str) -> None:
        """Cut every connection of a pod."""
        self._live.cut_workload(pod.workload.uid, reason, detail)

    async def wait_until_none(self) -> None:
        """Return when nothing is accepted any more, and no connection of any pod is alive."""
        while self._accepting:
            await self._none_accepts.wait()
        for _ in range(2):  # what was just accepted is begun in the next turn of the run loop, and alive from then on
            await trio.lowlevel.checkpoint()
        await self._live.wait_until_none()

    async def _end_with_pod(self, pod: Pod, scope: trio.CancelScope) -> None:
        await pod.gone.wait()
        scope.cancel()

    async def _accept(self, pod: Pod, listener: socket.socket, handler: Handler, connections: Crew) -> None:
        """Hand every connection of ``listener`` to ``handler``, for ever."""
        while True:
            await trio.lowlevel.wait_readable(listener)
            if self._accept_some(pod, listener, handler, connections, most=self._accepts_a_turn):
                await trio.sleep(_ACCEPT_BACKOFF_S)

    def _accept_the_last(self, pod: Pod, connections: Crew) -> None:
        """Serve those whose connect has succeeded: what is not accepted is reset with the listener.

        Not tunnels: nothing new goes through one while we drain, and who dialled it tries another endpoint.
        """
        for kind, listener in pod.listeners.by_kind():
            if kind != "tunnel":
                self._accept_some(pod, listener, self._handlers[kind], connections, most=_MOST_WAITING)

    def _accept_some(
        self, pod: Pod, listener: socket.socket, handler: Handler, connections: Crew, *, most: int
    ) -> bool:
        """Hand what waits on ``listener`` to ``handler``; whether we are out of descriptors."""
        for _ in range(most):
            try:
                connection, address = listener.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _OUT_OF_DESCRIPTORS:
                    _log.error("cannot accept for %s: %s", pod.workload.name, error.strerror)
                    return True
                continue  # that connection is gone already (accept(2): ECONNABORTED and the network's errors)
            connection.setblocking(False)
            connections.serve(partial(handler, pod, connection, peer_address(address)))
        return False
