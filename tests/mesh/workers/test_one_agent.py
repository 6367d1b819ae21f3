"""Two workers are one agent: its commands, metrics and records show the whole, and both carry."""

import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import pytest

from tests.mesh_builder import Mesh, Pod, wait_for

pytestmark = pytest.mark.mesh

_MANY: Final = 48


@contextmanager
def _open(client: Pod, ip: str, count: int) -> Iterator[list[socket.socket]]:
    """So many connections, all of which have carried bytes."""
    with ExitStack() as stack:
        connections = [stack.enter_context(client.connect(ip, 8080)) for _ in range(count)]
        for connection in connections:
            connection.sendall(b"hello")
        for connection in connections:
            assert connection.recv(5, socket.MSG_WAITALL) == b"hello"
        yield connections


def _two_pods(mesh: Mesh) -> tuple[Pod, Pod]:
    client, server = mesh.pod("client", node=1), mesh.pod("server", node=2, labels={"app": "web"})
    server.serve_echo(8080)
    return client, server


def test_connections_status_endpoints_and_metrics_show_the_whole(mesh: Mesh) -> None:
    client, server = _two_pods(mesh)
    service, _ = mesh.service("web", app="web", port=8080, target_port=8080)
    before = {node: mesh.metrics(node) for node in (1, 2)}
    with _open(client, service, _MANY):
        for node, direction in ((1, "outbound"), (2, "inbound")):
            rows: list[dict[str, Any]] = mesh.ringfence(node, "connections")
            assert [row["direction"] for row in rows] == [direction] * _MANY
            assert len({row["id"] for row in rows}) == _MANY
            by_worker = Counter(row["worker"] for row in rows)
            # At the destination whoever accepted the shared tunnels, which are one or two.
            assert by_worker.keys() == {1, 2} if node == 1 else by_worker.keys() <= {1, 2}, "both workers carry"

            status = mesh.ringfence(node, "status")
            assert status["connections"]["open"] == _MANY
            assert status["tunnels"]["busy"] == (len(by_worker) if node == 1 else 0), "one each, which all share"
            assert {row["worker"]: row["connections"] for row in status["workers"]} == {
                1: by_worker[1],
                2: by_worker[2],
            }
            assert [row["state"] for row in status["workers"]] == ["ready", "ready"]
            assert mesh.metrics(node)["ringfence_connections_open"] == _MANY
        endpoints = {row["address"]: row for row in mesh.ringfence(1, "endpoints", "web")}
        used, unused = endpoints[f"{server.ipv4}:8080"], endpoints[f"[{server.ipv6}]:8080"]
        assert (used["open_connections"], unused["open_connections"]) == (_MANY, 0)
        assert used["latency_ms"] > 0
        assert unused["latency_ms"] is None
        text = mesh.lab("ringfence", "1", "connections")
        assert "WORKER" in text.splitlines()[0]

    for node, direction in ((1, "outbound"), (2, "inbound")):
        records = wait_for("a record each", lambda: _all(mesh, node, direction))  # noqa: B023
        assert {record["close_reason"] for record in records} == {"ok"}
        name = f'ringfence_connections_closed_total{{close_reason="ok",direction="{direction}"}}'
        assert mesh.metrics(node)[name] - before[node].get(name, 0) == _MANY
        assert mesh.ringfence(node, "status")["connections"]["open"] == 0
        assert mesh.ringfence(node, "connections") == []


def _all(mesh: Mesh, node: int, direction: str) -> list[dict[str, Any]] | None:
    records = mesh.records(node, direction=direction)
    assert len(records) <= _MANY
    assert len({record["id"] for record in records}) == len(records)
    return records if len(records) == _MANY else None


def test_the_bytes_of_a_live_connection_are_counted_once(mesh: Mesh) -> None:
    client, server = _two_pods(mesh)

    def sent() -> float:
        found = mesh.metrics(1)
        return sum(value for name, value in found.items() if name.startswith("istio_tcp_received_bytes_total"))

    before = sent()
    with _open(client, server.ipv4, 4) as connections:
        for connection in connections:
            connection.sendall(b"x" * 1000)
            assert len(connection.recv(1000, socket.MSG_WAITALL)) == 1000
        assert sent() - before == 4 * 1005
        assert sent() - before == 4 * 1005
    wait_for("the records", lambda: len(mesh.records(1, direction="outbound")) == 4)
    assert sent() - before == 4 * 1005


def test_the_log_level_reaches_the_workers(mesh: Mesh) -> None:
    client, server = _two_pods(mesh)
    try:
        mesh.ringfence(2, "log-level", "debug")
        with _open(client, server.ipv4, 1):
            pass
        mesh.lab("restart", "agent-1")  # its tunnels end, which is told of at that level
        wait_for(
            "a worker's line at that level",
            lambda: [line for line in mesh.log(2) if line.get("level") == "debug" and line.get("worker")],
        )
    finally:
        mesh.ringfence(2, "log-level", "info")


def test_a_pod_that_is_added_is_accepted_for_by_every_worker(mesh: Mesh) -> None:
    _two_pods(mesh)
    for node in (1, 2):
        (row,) = [row for row in mesh.ringfence(node, "workloads") if row["local"]]
        assert (row["state"], row["error"]) == ("serving", None)
        assert mesh.ringfence(node, "status")["ready"]
