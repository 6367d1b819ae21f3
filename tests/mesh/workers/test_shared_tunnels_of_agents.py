"""Two agents, with workers or without: small connections share, and what becomes bulk moves, each byte whole."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Final

import pytest

from tests.mesh_builder import STATE_DIR, Mesh, Pod, wait_for
from tests.shared_ground import digest, some_bytes

pytestmark = pytest.mark.mesh

_MANY: Final = 20
_BULK: Final = 2_000_000
_PORT: Final = 8080


@pytest.fixture(scope="module", params=[(1, 2), (2, 1), (2, 2)], ids=["destination", "source", "both"])
def topology(session_mesh: Mesh, request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """How many workers source and destination have."""
    before = {node: (STATE_DIR / f"agent-{node}" / "agent.toml").read_text() for node in (1, 2)}
    for node, workers in zip((1, 2), request.param, strict=True):
        (STATE_DIR / f"agent-{node}" / "agent.toml").write_text(
            before[node].replace("workers = 2", f"workers = {workers}")
        )
        session_mesh.lab("restart", f"agent-{node}")
    try:
        yield request.param
    finally:
        for node, text in before.items():
            (STATE_DIR / f"agent-{node}" / "agent.toml").write_text(text)
            session_mesh.lab("restart", f"agent-{node}")


def _moves(mesh: Mesh) -> dict[str, float]:
    return {result: mesh.metric(1, "ringfence_tunnel_moves_total", result=result) for result in ("moved", "failed")}


def _exchange(connection: socket.socket, data: bytes) -> bytes:
    """Say ``data`` to an echo program, and hear as much."""
    heard = bytearray()

    def hear() -> None:
        while len(heard) < len(data):
            more = connection.recv(1 << 18)
            if not more:
                return
            heard.extend(more)

    hearing = threading.Thread(target=hear, daemon=True)
    hearing.start()
    connection.sendall(data)
    hearing.join(60)
    return bytes(heard)


def _bulk(connections: list[socket.socket], seed: int) -> None:
    """All of them at once."""
    wrong: list[str] = []

    def one(number: int, connection: socket.socket) -> None:
        said = some_bytes(_BULK, seed=seed + number)
        heard = _exchange(connection, said)
        if digest(heard) != digest(said):
            wrong.append(f"{number}: {digest(heard)}")

    threads = [threading.Thread(target=one, args=each, daemon=True) for each in enumerate(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert wrong == []


def _small(stack: ExitStack, client: Pod, server: Pod, port: int, count: int) -> list[socket.socket]:
    connections = [stack.enter_context(client.connect(server.ipv4, port)) for _ in range(count)]
    for connection in connections:
        assert _exchange(connection, b"small") == b"small"
    return connections


def test_small_connections_share_and_all_that_become_bulk_move(mesh: Mesh, topology: tuple[int, int]) -> None:
    client, server = mesh.pod("client", node=1), mesh.pod("server", node=2)
    server.serve_echo(_PORT)
    before = _moves(mesh)
    with ExitStack() as stack:
        connections = _small(stack, client, server, _PORT, _MANY)
        found = mesh.metrics(1)
        assert found["ringfence_shared_connections"] == _MANY
        assert 1 <= found["ringfence_tunnels_shared"] <= topology[0]
        _bulk(connections, seed=1)
        wait_for("each to have moved", lambda: _moves(mesh)["moved"] - before["moved"] == _MANY)
        _bulk(connections, seed=1000)
        assert _moves(mesh)["failed"] == before["failed"]
        assert mesh.metrics(1)["ringfence_shared_connections"] == 0
    for node, direction in ((1, "outbound"), (2, "inbound")):
        records = wait_for("a record each", lambda: _all(mesh, node, direction))  # noqa: B023
        assert {(each["close_reason"], each["sent_bytes"], each["received_bytes"]) for each in records} == {
            ("ok", 2 * _BULK + 5, 2 * _BULK + 5)
        }


def _all(mesh: Mesh, node: int, direction: str) -> list[dict[str, Any]] | None:
    records = mesh.records(node, direction=direction)
    return records if len(records) == _MANY else None


def test_tunnels_that_are_idle_do_not_keep_a_connection_from_moving(mesh: Mesh, topology: tuple[int, int]) -> None:
    """They were dialled for others, and may be at another worker than the stream."""
    client, server = mesh.pod("client", node=1), mesh.pod("server", node=2)
    for port in (_PORT, _PORT + 1):
        server.serve_echo(port)
    before = _moves(mesh)
    for turn in range(2):
        with ExitStack() as stack:
            _bulk(_small(stack, client, server, _PORT + turn, 8), seed=turn * 100)
            wait_for("each to have moved", lambda: _moves(mesh)["moved"] - before["moved"] == 8 * (turn + 1))  # noqa: B023
        wait_for("its tunnels to be idle", lambda: mesh.ringfence(1, "status")["tunnels"]["idle"] >= 8)
        if topology[1] > 1 and not turn:
            _kill_worker(mesh)  # and some of the idle ones are gone, with the shared one or without it
    assert _moves(mesh)["failed"] == before["failed"]


def _kill_worker(mesh: Mesh) -> None:
    doomed = mesh.ringfence(2, "status")["workers"][0]["pid"]
    os.kill(doomed, signal.SIGKILL)

    def replaced() -> bool:
        row = mesh.ringfence(2, "status")["workers"][0]
        return bool(row["pid"] != doomed and row["state"] == "ready")

    wait_for("another process", replaced)
