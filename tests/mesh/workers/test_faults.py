"""Workers that are killed, hang, or keep ending; a parent that is killed: nobody else is harmed, nothing opens."""

import contextlib
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any, Final

import pytest

from tests.mesh_builder import STATE_DIR, Mesh, Pod, read_all, wait_for
from tests.mesh_faults import edited

pytestmark = pytest.mark.mesh

_ECHO: Final = 8080
_WHOAMI: Final = 8081


def _two_pods(mesh: Mesh) -> tuple[Pod, Pod]:
    client, server = mesh.pod("client", node=1), mesh.pod("server", node=2)
    server.serve_echo(_ECHO)
    server.serve_whoami(_WHOAMI)
    return client, server


def _workers(mesh: Mesh, node: int) -> dict[int, dict[str, Any]]:
    return {row["worker"]: row for row in mesh.ringfence(node, "status")["workers"]}


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def _awaited_exit_code(node: int) -> str:
    """What the lab files a moment after the end."""
    path = STATE_DIR / f"agent-{node}" / "exit"
    return wait_for("the exit code", lambda: path.read_text().strip() if path.exists() else "")


def _exchange(connection: socket.socket) -> bool:
    """Whether a connection to the echo server still carries bytes."""
    try:
        connection.sendall(b"still there?")
        return connection.recv(12, socket.MSG_WAITALL) == b"still there?"
    except ConnectionResetError:
        return False


@pytest.mark.parametrize("node", [1, 2], ids=["source", "destination"])
def test_a_worker_that_is_killed_under_load_harms_only_its_own_connections(mesh: Mesh, node: int) -> None:
    client, server = _two_pods(mesh)
    connections = [client.connect(server.ipv4, _ECHO) for _ in range(40)]
    assert all(_exchange(connection) for connection in connections)
    rows = mesh.ringfence(node, "connections")
    number = rows[0]["worker"]
    doomed = _workers(mesh, node)[number]
    lost = {row["id"] for row in rows if row["worker"] == number}
    assert node == 2 or len(lost) < len(rows), "at the destination one worker may have all the shared tunnels"

    stop = threading.Event()
    answered: list[str] = []

    def ask() -> None:
        while not stop.is_set():
            # The one that the dying worker had in its hands is reset, as by any agent that dies.
            with contextlib.suppress(ConnectionResetError):
                answered.append(client.ask_whoami(server.ipv4, _WHOAMI)[0])

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    try:
        wait_for("load", lambda: len(answered) > 20)
        os.kill(doomed["pid"], signal.SIGKILL)
        wait_for("another process in its place", lambda: _workers(mesh, node)[number]["state"] == "ready")
        begun = len(answered)
        wait_for("load on both again", lambda: len(answered) > begun + 20)
    finally:
        stop.set()
        for asker in askers:
            asker.join()
    assert set(answered) == {"server"}
    assert _workers(mesh, node)[number]["pid"] != doomed["pid"]
    assert sum(not _exchange(connection) for connection in connections) == len(lost)

    for connection in connections:
        connection.close()
    direction = "outbound" if node == 1 else "inbound"
    kept = {row["id"] for row in rows} - lost
    wait_for("the records of the others", lambda: kept <= {record["id"] for record in mesh.records(node)})
    ids = [record["id"] for record in mesh.records(node, direction=direction)]
    assert len(ids) == len(set(ids))
    assert lost.isdisjoint(ids), "what a killed process held, it can not record"
    assert mesh.metrics(node)["ringfence_worker_crashes_total"] >= 1
    assert mesh.ringfence(node, "status")["ready"]
    mesh.lab("restart", f"agent-{node}")  # the next test compares counters with records


def test_counters_do_not_go_back_when_a_worker_is_killed(mesh: Mesh) -> None:
    client, server = _two_pods(mesh)
    for _ in range(20):
        client.ask_whoami(server.ipv4, _WHOAMI)
    before = wait_for("the records to be counted", lambda: _totals(mesh, least=20))
    os.kill(_workers(mesh, 1)[1]["pid"], signal.SIGKILL)
    wait_for("another process", lambda: _workers(mesh, 1)[1]["state"] == "ready")
    after = _totals(mesh, least=0)
    assert after is not None
    assert {name: value for name, value in before.items() if after.get(name, 0) < value} == {}
    mesh.lab("restart", "agent-1")


def _totals(mesh: Mesh, *, least: int) -> dict[str, float] | None:
    samples = mesh.metrics(1)
    closed = sum(value for name, value in samples.items() if name.startswith("ringfence_connections_closed_total"))
    if closed < least:
        return None
    return {name: value for name, value in samples.items() if "_total" in name and "process" not in name}


def test_a_worker_gets_everything_again_that_has_changed_since_the_start(mesh: Mesh) -> None:
    client, server = _two_pods(mesh)
    late = mesh.pod("late", node=1)
    mesh.ringfence(1, "log-level", "debug")
    for number in (1, 2):
        os.kill(_workers(mesh, 1)[number]["pid"], signal.SIGKILL)
        wait_for("another process", lambda: _workers(mesh, 1)[number]["state"] == "ready")  # noqa: B023
    try:
        assert late.ask_whoami(server.ipv4, _WHOAMI) == ["server", late.ipv4]
        assert client.ask_whoami(server.ipv4, _WHOAMI) == ["server", client.ipv4]
        wait_for(
            "its level", lambda: [line for line in mesh.log(1) if line.get("level") == "debug" and line.get("worker")]
        )
        late.delete()
        assert client.ask_whoami(server.ipv4, _WHOAMI) == ["server", client.ipv4]
    finally:
        mesh.ringfence(1, "log-level", "info")
        mesh.lab("restart", "agent-1")


def test_connections_in_the_queue_of_a_killed_worker_go_to_the_other_one(mesh: Mesh) -> None:
    client, server = _two_pods(mesh)
    client.ask_whoami(server.ipv4, _WHOAMI)
    workers = _workers(mesh, 1)
    for row in workers.values():
        os.kill(row["pid"], signal.SIGSTOP)
    try:
        waiting = [client.connect(server.ipv4, _WHOAMI) for _ in range(10)]  # the kernel accepts them
        os.kill(workers[1]["pid"], signal.SIGKILL)
    finally:
        os.kill(workers[2]["pid"], signal.SIGCONT)
    for connection in waiting:
        with connection:
            assert read_all(connection).split()[0] == b"server"
    wait_for("another process", lambda: _workers(mesh, 1)[1]["state"] == "ready")
    mesh.lab("restart", "agent-1")


def test_when_the_parent_is_killed_its_workers_end_and_nothing_opens(mesh: Mesh) -> None:
    client, server = _two_pods(mesh)
    outside = mesh.pod("outside", node=2, mesh=False)
    outside.serve_whoami(_WHOAMI)
    running = client.connect(server.ipv4, _ECHO)
    assert _exchange(running)
    pids = mesh.agent_pids(1)
    with mesh.stopped("agent-1", how="kill"):
        wait_for("the end of every process", lambda: not any(map(_is_alive, pids)))
        with pytest.raises(ConnectionResetError):
            running.recv(1)
        for ip in (server.ipv4, outside.ipv4):
            with pytest.raises(ConnectionRefusedError):
                client.connect(ip, _WHOAMI).close()
    running.close()
    assert client.ask_whoami(server.ipv4, _WHOAMI) == ["server", client.ipv4]


def test_signals_to_the_whole_group_drain_as_a_signal_to_the_parent_does(mesh: Mesh) -> None:
    """A service manager, or Ctrl-C in a terminal, signals every process."""
    client, server = _two_pods(mesh)
    pids = mesh.agent_pids(2)
    with client.connect(server.ipv4, _ECHO) as running:
        assert _exchange(running)
        for pid in [*pids[1:], pids[0]]:
            os.kill(pid, signal.SIGTERM)
        wait_for("draining", lambda: mesh.ringfence(2, "status")["draining"])
        assert _exchange(running)
    try:
        wait_for("the end of every process", lambda: not any(map(_is_alive, pids)))
        assert _awaited_exit_code(2) == "0"
        assert mesh.record(2, direction="inbound")["close_reason"] == "ok"
    finally:
        mesh.lab("start", "agent-2")


def test_workers_that_keep_ending_end_the_agent_with_an_error(mesh: Mesh) -> None:
    _two_pods(mesh)
    killed: set[int] = set()

    def look() -> bool:
        pid_file = STATE_DIR / "agent-1" / "exit"
        if pid_file.exists():
            return True
        parent = int((STATE_DIR / "agent-1" / "pid").read_text().split()[0])
        for child in _children(parent):
            if child not in killed:
                killed.add(child)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        return False

    try:
        wait_for("the agent to give up", look, deadline_s=60)
        assert _awaited_exit_code(1) == "1"
        assert "worker processes keep ending" in (STATE_DIR / "agent-1" / "log").read_text()
        assert 10 <= len(killed) <= 13
    finally:
        mesh.lab("start", "agent-1")


def _children(pid: int) -> list[int]:
    """Its worker processes; the children that set up pods are left alone."""
    try:
        found = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return [each for each in found if b"node_agent.workers" in Path(f"/proc/{each}/cmdline").read_bytes()]
    except FileNotFoundError:
        return []


def test_the_drain_deadline_holds_for_every_worker(mesh: Mesh) -> None:
    client, server = _two_pods(mesh)
    config = STATE_DIR / "agent-1" / "agent.toml"
    with edited(config, "[agent]\n", "[agent]\ndrain_grace_s = 0.5\n"):
        mesh.lab("restart", "agent-1")
        connections = [client.connect(server.ipv4, _ECHO) for _ in range(16)]
        assert all(_exchange(connection) for connection in connections)
        assert {row["worker"] for row in mesh.ringfence(1, "connections")} == {1, 2}
        mesh.lab("stop", "agent-1")
    try:
        for connection in connections:
            with connection, pytest.raises(ConnectionResetError):
                connection.recv(1)
        records = mesh.records(1, direction="outbound")
        assert [record["close_reason"] for record in records] == ["drained"] * 16
        assert _awaited_exit_code(1) == "0"
    finally:
        mesh.lab("start", "agent-1")
