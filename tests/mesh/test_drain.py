"""Point 10: an agent that is asked to go takes nothing new, lets what runs end, and says why it cuts the rest."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

from tests.mesh_builder import STATE_DIR, Mesh, Pod, read_all, wait_for
from tests.mesh_faults import edited, readyz

pytestmark = pytest.mark.mesh

_ENDS: Final = {"source": 1, "destination": 2}


@contextmanager
def _grace(mesh: Mesh, node: int, grace_s: float) -> Iterator[None]:
    """Give an agent that grace for the length of the block, in which it is to end."""
    config = STATE_DIR / f"agent-{node}" / "agent.toml"
    try:
        with edited(config, "[agent]\n", f"[agent]\ndrain_grace_s = {grace_s}\n"):
            mesh.lab("restart", f"agent-{node}")
            yield
    finally:
        mesh.lab("restart", f"agent-{node}")


def _ask_to_go(mesh: Mesh, node: int) -> int:
    """Send SIGTERM and return when the agent has begun to drain."""
    pid = mesh.agent_pid(node)
    os.kill(pid, signal.SIGTERM)
    wait_for("draining", lambda: mesh.ringfence(node, "status")["draining"])
    return pid


def _exit_code(node: int) -> int | None:
    try:
        return int((STATE_DIR / f"agent-{node}" / "exit").read_text())
    except FileNotFoundError:
        return None


def _awaited_exit_code(node: int) -> int:
    wait_for("the agent's end", lambda: _exit_code(node) is not None)
    code = _exit_code(node)
    assert code is not None
    return code


def _exchange(connection: socket.socket, payload: bytes = b"still there?") -> None:
    connection.sendall(payload)
    assert connection.recv(len(payload)) == payload


def _assert_refused(pod: Pod, ip: str, port: int) -> None:
    with pytest.raises(ConnectionRefusedError):
        pod.connect(ip, port).close()


@pytest.mark.parametrize("end", _ENDS)
def test_running_connections_get_the_grace_period_and_then_are_cut_with_the_reason(mesh: Mesh, end: str) -> None:
    node = _ENDS[end]
    client = mesh.pod("client", node=1)
    server = mesh.pod("server", node=2)
    outside = mesh.pod("outside", node=node, mesh=False)
    drained = client if end == "source" else server
    for pod in (client, server, outside):
        pod.serve_echo(8080)
    with _grace(mesh, node, 2):
        with client.connect(server.ipv4, 8080) as running:
            _exchange(running)
            began = time.monotonic()
            _ask_to_go(mesh, node)

            status, reasons = readyz(mesh, node)
            assert (status, "draining" in reasons) == (503, True)
            _assert_refused(drained, outside.ipv4, 8080)
            _assert_refused(outside, drained.ipv4, 8080)
            _exchange(running)
            with pytest.raises(ConnectionResetError):
                running.recv(1)
            assert time.monotonic() - began >= 2
        assert _awaited_exit_code(node) == 0
        assert not (STATE_DIR / f"agent-{node}" / "agent.sock").exists()

        for at, direction in ((1, "outbound"), (2, "inbound")):
            record = mesh.record(at, direction=direction)
            assert record["close_reason"] == "drained"
            assert record["response_flags"] == "CUT"
            assert record["received_bytes"] == record["sent_bytes"] == 2 * len(b"still there?")


@pytest.mark.parametrize("end", _ENDS)
def test_connections_that_end_within_the_grace_period_end_in_order(mesh: Mesh, end: str) -> None:
    node = _ENDS[end]
    client = mesh.pod("client", node=1)
    server = mesh.pod("server", node=2)
    server.serve_echo(8080)
    with _grace(mesh, node, 600):
        with client.connect(server.ipv4, 8080) as running:
            _exchange(running)
            pid = _ask_to_go(mesh, node)
            # Asking again does not shorten it.
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGINT)
            _exchange(running, os.urandom(1000))
            assert _exit_code(node) is None
            running.shutdown(socket.SHUT_WR)
            assert running.recv(1) == b""
        assert _awaited_exit_code(node) == 0  # long before the grace period is over

        for at, direction in ((1, "outbound"), (2, "inbound")):
            assert mesh.record(at, direction=direction)["close_reason"] == "ok"
        assert [line for line in mesh.log(node) if line.get("level") in {"error", "critical"}] == []


def test_a_busy_connection_is_cut_with_the_reason_too(mesh: Mesh) -> None:
    """Both directions are full when the grace period ends: the reason must find its way past the bytes."""
    client = mesh.pod("client", node=1)
    server = mesh.pod("server", node=2)
    server.serve_echo(8080)
    with _grace(mesh, 2, 0.5):
        with client.connect(server.ipv4, 8080) as running:
            ends: list[OSError] = []
            writer = threading.Thread(target=_pour, args=(running, ends))
            writer.start()
            _exchange_is_on(running)
            _ask_to_go(mesh, 2)
            try:
                read_all(running)
            except OSError as error:
                ends.append(error)
            writer.join(60)
            # The kernel tells of a reset once, to whichever asks first.
            assert ConnectionResetError in map(type, ends)
        assert _awaited_exit_code(2) == 0
        for at, direction in ((1, "outbound"), (2, "inbound")):
            assert mesh.record(at, direction=direction)["close_reason"] == "drained"


def _pour(connection: socket.socket, ends: list[OSError]) -> None:
    """Write until it fails, and file how."""
    try:
        while True:
            connection.sendall(b"y" * 65536)
    except OSError as error:
        ends.append(error)


def _exchange_is_on(connection: socket.socket) -> None:
    received = 0
    while received < 1 << 20:
        received += len(connection.recv(1 << 20))


def _failed(mesh: Mesh) -> list[dict[str, Any]]:
    return [each for each in mesh.records(1, direction="outbound") if each["close_reason"] != "ok"]


def test_who_drains_keeps_nobody_waiting_who_has_a_tunnel_to_it(mesh: Mesh) -> None:
    client = mesh.pod("client", node=1)
    server = mesh.pod("server", node=2)
    server.serve_echo(8080)
    server.serve_whoami(8081)
    with _grace(mesh, 2, 30):
        with client.connect(server.ipv4, 8080) as running:
            _exchange(running)
            client.ask_whoami(server.ipv4, 8081)
            tunnels = mesh.ringfence(1, "status")["tunnels"]
            assert tunnels["busy"] == 1
            _ask_to_go(mesh, 2)

            with pytest.raises(ConnectionResetError):
                client.ask_whoami(server.ipv4, 8081)
            # In the tunnel that goes on it is told so; one that is idle is closed, and then there is no way.
            # With workers it may be another one that asks, with or without a tunnel.
            reasons = {"peer_unavailable" if tunnels["idle"] else "drained"}
            if mesh.ringfence(1, "status").get("workers"):
                reasons = {"peer_unavailable", "drained"}
            (record,) = wait_for("its record", lambda: _failed(mesh))
            assert record["close_reason"] in reasons
            assert record["received_bytes"] == 0
            _exchange(running)
        assert _awaited_exit_code(2) == 0
    assert client.ask_whoami(server.ipv4, 8081)[0] == "server"


def test_a_service_loses_nobody_while_one_of_its_agents_is_restarted(mesh: Mesh) -> None:
    client = mesh.pod("client", node=1)
    for node in (1, 2):
        mesh.pod(f"web-{node}", node=node, labels={"app": "web"}).serve_whoami(8080)
    service, _ = mesh.service("web", app="web", port=80, target_port=8080)
    answers: list[str] = []
    stop = threading.Event()
    failures: list[OSError] = []

    def ask() -> None:
        while not stop.is_set():
            try:
                answers.append(client.ask_whoami(service, 80)[0])
            except OSError as error:
                failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_for("answers of both", lambda: {"web-1", "web-2"} <= set(answers))
        mesh.lab("restart", "agent-2")
        begun = len(answers)
        wait_for("answers of the restarted one", lambda: "web-2" in answers[begun:])
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert all(answers)
