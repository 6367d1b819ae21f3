"""Limits of a TrafficPolicy with two workers: one count, whoever accepts the connection, and whoever dies."""

import contextlib
import os
import signal
import socket
import threading
from typing import Final

import pytest

from tests.mesh.test_traffic_limits import (
    client,
    server,
    service,
    test_a_limit_per_source_is_each_source_own,
    test_a_reset_and_a_cut_are_heard_while_bytes_wait,
    test_connections_over_the_limit_are_refused_at_once_until_one_ends,
    test_connections_over_the_rate_are_refused_by_source,
    test_connections_share_the_bytes_of_a_second,
    test_every_connection_is_refused_or_none_and_it_is_told_loudly,
)
from tests.mesh_builder import Mesh, Pod, wait_for

__all__ = [
    "client",
    "server",
    "service",
    "test_a_limit_per_source_is_each_source_own",
    "test_a_reset_and_a_cut_are_heard_while_bytes_wait",
    "test_connections_over_the_limit_are_refused_at_once_until_one_ends",
    "test_connections_over_the_rate_are_refused_by_source",
    "test_connections_share_the_bytes_of_a_second",
    "test_every_connection_is_refused_or_none_and_it_is_told_loudly",
]

pytestmark = pytest.mark.mesh

_LIMIT: Final = 10
_POLICY: Final = f"""\
apiVersion: ringfence.io/v1alpha1
kind: TrafficPolicy
metadata: {{name: web}}
spec:
  targetRef: {{kind: Service, name: web}}
  limits: {{maxConnections: {_LIMIT}}}
"""


def _open_at_once(pod: Pod, ip: str, count: int) -> list[socket.socket]:
    """Try ``count`` connections to the echo server at the same time; returns those that were let in."""
    let_in: list[socket.socket] = []

    def one() -> None:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError), contextlib.ExitStack() as stack:
            connection = stack.enter_context(pod.connect(ip, 80))
            connection.sendall(b"x")
            if connection.recv(1) == b"x":
                let_in.append(connection)
                stack.pop_all()

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return let_in


def test_a_burst_never_gets_more_than_the_limit_and_a_dead_worker_gives_its_share_back(
    mesh: Mesh,
    client: Pod,
    server: Pod,
    service: str,
) -> None:
    server.serve_echo(8080)
    mesh.apply(_POLICY)
    connections = _open_at_once(client, service, 40)
    try:
        assert len(connections) == _LIMIT
        rows = [row for row in mesh.ringfence(1, "connections") if row["state"] == "open"]
        by_worker: dict[int, int] = {number: sum(row["worker"] == number for row in rows) for number in (1, 2)}
        assert sum(by_worker.values()) == _LIMIT
        victim: int = max(by_worker, key=lambda number: by_worker[number])
        share = by_worker[victim]
        pid = next(row["pid"] for row in mesh.ringfence(1, "status")["workers"] if row["worker"] == victim)
        os.kill(pid, signal.SIGKILL)

        def all_its_share() -> bool:
            connections.extend(_open_at_once(client, service, share))
            return len(connections) == _LIMIT + share

        wait_for("its share", all_its_share)
        assert _open_at_once(client, service, 5) == [], "and not one more"
    finally:
        for connection in connections:
            connection.close()
