"""Accepting ends in order: who waited to be accepted when draining began is served, and is waited for."""

import socket
from contextlib import ExitStack
from typing import Any

import trio
import trio.testing

from ca.spiffe import SpiffeId
from node_agent.capture import Listeners
from node_agent.model import ObjectName, PeerAddress, Workload
from node_agent.proxy.live import LiveConnections
from node_agent.proxy.pod import Accepted, Pod
from node_agent.proxy.serving import LocalServer
from node_agent.telemetry.access_log import AccessLog
from node_agent.telemetry.metrics import Metrics

_PEER = PeerAddress("10.1.0.2", 40000)
_KINDS = ("outbound", "inbound_plaintext", "tunnel")


class _Nothing:
    """A pod's network that makes no sockets, and tunnels that are none."""

    def close(self) -> None: ...

    def forget(self, _uid: str) -> None: ...


class _Stories:
    """Handlers of all three kinds: each connection lives until ``end``, and is answered then."""

    def __init__(self, live: LiveConnections) -> None:
        self.live = live
        self.log = AccessLog(metrics=Metrics(), node="node-1")
        self.end = trio.Event()
        self.begun: list[str] = []

    async def _serve(self, kind: str, pod: Pod, connection: socket.socket, scope: trio.CancelScope) -> None:
        with (
            self.log.connection("inbound") as record,
            self.live.track(record, pod.workload.uid, scope),
            Accepted(connection) as accepted,
        ):
            self.begun.append(kind)
            await self.end.wait()
            accepted.send(b"served")

    async def handle(self, pod: Pod, connection: socket.socket, _peer: PeerAddress, scope: trio.CancelScope) -> None:
        await self._serve("outbound", pod, connection, scope)

    async def handle_plaintext(
        self, pod: Pod, connection: socket.socket, _peer: PeerAddress, scope: trio.CancelScope
    ) -> None:
        await self._serve("inbound_plaintext", pod, connection, scope)

    async def handle_passed(
        self, pod: Pod, connection: socket.socket, _peer: PeerAddress, accepted_at: float, scope: trio.CancelScope
    ) -> None:
        await self._serve(f"passed {accepted_at}", pod, connection, scope)

    async def handle_tunnel(
        self, pod: Pod, connection: socket.socket, _peer: PeerAddress, scope: trio.CancelScope
    ) -> None:
        await self._serve("tunnel", pod, connection, scope)


class _Stage:
    """One pod with its three listeners on the loopback."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in _KINDS]
        for each in self.listeners:
            each.setblocking(False)
        live = LiveConnections()
        self.stories = _Stories(live)
        nothing: Any = _Nothing()
        stories: Any = self.stories
        self.server = LocalServer(outbound=stories, inbound=stories, tunnels=nothing, live=live)
        self.pod = Pod(
            workload=Workload(
                name=ObjectName("default", "web"),
                uid="web",
                identity=SpiffeId.workload("example.org", "default", "web"),
                addresses=("10.1.0.1",),
                service_account="web",
                node="node-1",
                enrolled=True,
            ),
            network=nothing,
            listeners=Listeners.of(self.listeners),
        )
        self.accepting = trio.CancelScope()

    def connect(self, kind: str) -> socket.socket:
        """Connected as far as the kernel is concerned; nobody has accepted."""
        made = socket.create_connection(self.listeners[_KINDS.index(kind)].getsockname(), 30)
        return self.stack.enter_context(made)


async def test_who_waits_to_be_accepted_when_draining_begins_is_served_and_waited_for() -> None:
    with ExitStack() as stack:
        stage = _Stage(stack)
        clients = {kind: [stage.connect(kind) for _ in range(3)] for kind in _KINDS}
        stage.accepting.cancel()
        over = trio.Event()

        async def drain() -> None:
            await stage.server.wait_until_none()
            over.set()
            stage.pod.gone.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.server.serve, stage.pod, stage.accepting)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(drain)
            await trio.testing.wait_all_tasks_blocked()
            assert sorted(stage.stories.begun) == ["inbound_plaintext"] * 3 + ["outbound"] * 3
            assert not over.is_set(), "they are not over"
            stage.stories.end.set()
        for kind in ("outbound", "inbound_plaintext"):
            assert [client.recv(100) for client in clients[kind]] == [b"served"] * 3
        for client in clients["tunnel"]:
            assert _is_reset(client), "who dialled tries another endpoint"


async def test_draining_that_begins_in_the_turn_of_an_accept_waits_for_it() -> None:
    """Whichever task of one turn of the run loop comes first."""
    for _ in range(50):
        with ExitStack() as stack:
            stage = _Stage(stack)
            waited: list[int] = []

            async def drain(stage: _Stage = stage, waited: list[int] = waited) -> None:
                await stage.server.wait_until_none()
                waited.append(len(stage.stories.begun))
                stage.pod.gone.set()

            stage.stories.end.set()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stage.server.serve, stage.pod, stage.accepting)
                await trio.testing.wait_all_tasks_blocked()
                client = stage.connect("outbound")
                nursery.start_soon(drain)
                stage.accepting.cancel()
            assert waited == [1]
            assert client.recv(100) == b"served"


async def test_a_pod_that_is_gone_serves_nobody_any_more() -> None:
    with ExitStack() as stack:
        stage = _Stage(stack)
        client = stage.connect("outbound")
        stage.accepting.cancel()
        stage.pod.gone.set()
        await stage.server.serve(stage.pod, stage.accepting)
        assert stage.stories.begun == []
        assert _is_reset(client)


async def test_a_tunnel_that_another_process_accepted_is_served_as_our_own() -> None:
    with ExitStack() as stack:
        stage = _Stage(stack)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.server.serve, stage.pod, stage.accepting)
            await trio.testing.wait_all_tasks_blocked()
            client, connection = _pair(stack)
            stage.server.serve_passed(stage.pod, connection, _PEER, 7.5)
            await trio.testing.wait_all_tasks_blocked()
            assert stage.stories.begun == ["passed 7.5"]
            stage.stories.end.set()
            await trio.testing.wait_all_tasks_blocked()
            assert client.recv(100) == b"served"
            stage.pod.gone.set()


async def test_a_tunnel_that_is_passed_on_too_late_is_reset() -> None:
    """Before the pod is served, while we drain, when it is going, and when it is gone."""
    with ExitStack() as stack:
        stage = _Stage(stack)
        clients = []

        def passed() -> None:
            client, connection = _pair(stack)
            clients.append(client)
            stage.server.serve_passed(stage.pod, connection, _PEER, 7.5)

        passed()
        waiting = stage.connect("outbound")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.server.serve, stage.pod, stage.accepting)
            await trio.testing.wait_all_tasks_blocked()
            stage.accepting.cancel()
            await trio.testing.wait_all_tasks_blocked()
            passed()
            stage.pod.gone.set()
            passed()
        passed()
        assert stage.stories.begun == ["outbound"]
        assert all(_is_reset(client) for client in clients)
        assert _is_reset(waiting), "it is of the pod that is gone"

    with ExitStack() as stack:
        stage = _Stage(stack)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.server.serve, stage.pod, stage.accepting)
            await trio.testing.wait_all_tasks_blocked()
            stage.pod.gone.set()  # in this very turn
            client, connection = _pair(stack)
            stage.server.serve_passed(stage.pod, connection, _PEER, 7.5)
        assert stage.stories.begun == []
        assert _is_reset(client)


def _pair(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    """A connection: the client's end, and the accepted one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = stack.enter_context(socket.create_connection(listener.getsockname(), 30))
        connection, _ = listener.accept()
    connection.setblocking(False)
    return client, connection


def _is_reset(client: socket.socket) -> bool:
    try:
        client.recv(1)
    except ConnectionResetError:
        return True
    return False
