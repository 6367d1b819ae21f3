"""Serve pods in this process: accept on their listeners, run a story for each connection."""

import errno
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, Protocol

import trio

from node_agent.capture import peer_address
from node_agent.errors import CloseReason
from node_agent.model import PeerAddress
from node_agent.proxy.inbound import Inbound
from node_agent.proxy.live import LiveConnections
from node_agent.proxy.outbound import Outbound
from node_agent.proxy.pod import Pod
from node_agent.tunnel import TunnelClient

_log = logging.getLogger("ringfence.pods")

ACCEPTS_A_TURN: Final = 64
_OUT_OF_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_ACCEPT_BACKOFF_S: Final = 0.1

Handler = Callable[[Pod, socket.socket, PeerAddress], Awaitable[None]]


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
        self._tunnels = tunnels
        self._live = live
        self._accepts_a_turn = accepts_a_turn
        self._serving: set[Pod] = set()

    async def serve(self, pod: Pod, accepting: trio.CancelScope) -> None:
        """Accept until draining or the pod's end, then wait for (or end) its connections."""
        self._serving.add(pod)
        try:
            async with trio.open_nursery() as connections:
                connections.start_soon(self._end_with_pod, pod, connections.cancel_scope)
                with accepting:
                    async with trio.open_nursery() as listeners:
                        for kind, listener in pod.listeners.by_kind():
                            listeners.start_soon(self._accept, pod, listener, self._handlers[kind], connections)
                pod.listeners.close()  # from now on a connect is refused
        finally:
            self._serving.discard(pod)
            self._tunnels.forget(pod.workload.uid)
            pod.close()
            pod.closed.set()

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
        """Return when no connection of any pod is alive."""
        await self._live.wait_until_none()

    async def _end_with_pod(self, pod: Pod, scope: trio.CancelScope) -> None:
        await pod.gone.wait()
        scope.cancel()

    async def _accept(self, pod: Pod, listener: socket.socket, handler: Handler, connections: trio.Nursery) -> None:
        """Hand every connection of ``listener`` to ``handler``, for ever."""
        while True:
            await trio.lowlevel.wait_readable(listener)
            for _ in range(self._accepts_a_turn):
                try:
                    connection, address = listener.accept()
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno in _OUT_OF_DESCRIPTORS:
                        _log.error("cannot accept for %s: %s", pod.workload.name, error.strerror)
                        await trio.sleep(_ACCEPT_BACKOFF_S)
                        break
                    continue  # that connection is gone already (accept(2): ECONNABORTED and the network's errors)
                connection.setblocking(False)
                connections.start_soon(handler, pod, connection, peer_address(address))
