"""Limits, rate limits and faults of a TrafficPolicy, as programs in pods meet them."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

import pytest

from tests.mesh_builder import Mesh, Pod, read_all, wait_for

pytestmark = pytest.mark.mesh

_ONE_READ_BYTES: Final = 16 * 1024
_POLICY = """\
apiVersion: ringfence.io/v1alpha1
kind: TrafficPolicy
metadata: {{name: web}}
spec:
  targetRef: {{kind: Service, name: web}}
  {spec}
"""


def _apply(mesh: Mesh, spec: str) -> None:
    mesh.apply(_POLICY.format(spec=spec))


@pytest.fixture
def client(mesh: Mesh) -> Pod:
    return mesh.pod("client", node=1, service_account="client")


@pytest.fixture
def server(mesh: Mesh) -> Pod:
    return mesh.pod("web", node=2, labels={"app": "web"})


@pytest.fixture
def service(mesh: Mesh, server: Pod) -> str:
    return mesh.service("web", app="web", port=80, target_port=8080)[0]


@contextlib.contextmanager
def _exchanging(pod: Pod, ip: str) -> Iterator[socket.socket]:
    """A connection to the echo server that has carried a byte; raises ConnectionResetError if it is refused."""
    with pod.connect(ip, 80) as connection:
        connection.sendall(b"x")
        if connection.recv(1) != b"x":
            raise AssertionError("the echo server ended the connection")
        yield connection


def _is_refused(pod: Pod, ip: str) -> bool:
    try:
        with _exchanging(pod, ip):
            return False
    except (ConnectionResetError, BrokenPipeError):
        return True


def _records(mesh: Mesh, count: int, **fields: Any) -> list[dict[str, Any]]:
    """At least ``count`` records of agent 1, outbound, as soon as they are written."""
    return wait_for(
        "the records",
        lambda: found if len(found := mesh.records(1, direction="outbound", **fields)) >= count else None,
    )


def _fault_warnings(mesh: Mesh) -> list[str]:
    return [each for each in mesh.ringfence(1, "status")["warnings"] if "fault" in each]


# -- limits -----------------------------------------------------------------------


def test_connections_over_the_limit_are_refused_at_once_until_one_ends(
    mesh: Mesh, client: Pod, server: Pod, service: str
) -> None:
    server.serve_echo(8080)
    _apply(mesh, "limits: {maxConnections: 2}")
    with _exchanging(client, service) as first:
        with _exchanging(client, service):
            assert all(_is_refused(client, service) for _ in range(3))
            first.sendall(b"y")
            assert first.recv(1) == b"y", "those that are there go on"
        wait_for("room for another one", lambda: not _is_refused(client, service))
    refused = _records(mesh, 3, close_reason="limit_exceeded")
    assert refused[0]["detail"].startswith("maxConnections 2 of TrafficPolicy default/web is reached")
    assert (refused[0]["response_flags"], refused[0]["attempts"]) == ("OVERLOAD", 0)
    assert mesh.metric(1, "ringfence_connections_closed_total", close_reason="limit_exceeded") >= len(refused)


def test_a_limit_per_source_is_each_source_own(mesh: Mesh, client: Pod, server: Pod, service: str) -> None:
    other = mesh.pod("other", node=1, service_account="other")
    server.serve_echo(8080)
    _apply(mesh, "limits: {maxConnectionsPerSource: 1}")
    with _exchanging(client, service), _exchanging(other, service):
        assert _is_refused(client, service)
        assert _is_refused(other, service)
    record = mesh.record(1, close_reason="limit_exceeded", source_workload="default/client")
    assert "maxConnectionsPerSource 1" in record["detail"]
    assert record["source_identity"] in record["detail"]


def test_connects_that_are_under_way_have_a_limit_of_their_own(
    mesh: Mesh, client: Pod, server: Pod, service: str
) -> None:
    server.serve_echo(8080)
    _apply(mesh, "limits: {maxPendingConnects: 1}\n  faults: [{percent: 100, delay: 1s}]")
    with client.connect(service, 80) as slow:
        wait_for("the delayed one", lambda: mesh.ringfence(1, "connections"))
        assert _is_refused(client, service)
        slow.sendall(b"z")
        assert slow.recv(1) == b"z"
        with _exchanging(client, service):
            pass  # the first is open, but no pending connect any more
    assert "maxPendingConnects 1" in mesh.record(1, close_reason="limit_exceeded")["detail"]


def test_a_failed_connect_counts_no_more(mesh: Mesh, client: Pod, server: Pod, service: str) -> None:
    _apply(mesh, "limits: {maxConnections: 1, maxPendingConnects: 1}\n  outlierDetection: {enabled: false}")
    for _ in range(3):
        assert _is_refused(client, service)  # nobody listens
    assert {record["close_reason"] for record in _records(mesh, 3)} == {"connect_refused"}
    server.serve_echo(8080)
    assert not _is_refused(client, service)


# -- rate limits --------------------------------------------------------------------


def test_connections_over_the_rate_are_refused_by_source(mesh: Mesh, client: Pod, server: Pod, service: str) -> None:
    other = mesh.pod("other", node=1, service_account="other")
    server.serve_echo(8080)
    _apply(mesh, "rateLimit: {connectionsPerSecond: 0.001, connectionsBurst: 3, perSource: true}")
    assert [_is_refused(client, service) for _ in range(5)] == [False, False, False, True, True]
    assert not _is_refused(other, service)
    record = _records(mesh, 2, close_reason="rate_limited")[0]
    assert record["detail"].startswith("connectionsPerSecond 0.001 of TrafficPolicy default/web is used up")
    assert record["response_flags"] == "OVERLOAD"


@pytest.mark.parametrize("is_meshed", [True, False], ids=["tunnel", "plain"])
def test_bytes_over_the_rate_wait_and_all_of_them_arrive(mesh: Mesh, client: Pod, is_meshed: bool) -> None:
    server = mesh.pod("web", node=2, labels={"app": "web"}, mesh=is_meshed)
    service, _ = mesh.service("web", app="web", port=80, target_port=8080)
    arrived: list[int] = []

    def sink(connection: socket.socket, _peer: str) -> None:
        while data := connection.recv(65536):
            arrived.append(len(data))
        connection.sendall(b"%d" % sum(arrived))

    server.serve(8080, sink)
    rate, burst = 200_000, 20_000
    total = 3 * rate
    _apply(mesh, f"rateLimit: {{bytesPerSecond: {rate}, bytesBurst: {burst}}}")
    with client.connect(service, 80, timeout_s=60) as connection:
        began = time.monotonic()

        def send() -> None:
            connection.sendall(bytes(total))
            connection.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        wait_for("two seconds' worth", lambda: sum(arrived) >= 2 * rate)
        elapsed = time.monotonic() - began
        assert 2 * rate <= 1.5 * (elapsed * rate + burst), "too fast"
        assert read_all(connection) == b"%d" % total, "a half-close is heard behind the last byte"
        sender.join()
    record = mesh.record(1, direction="outbound")
    assert (record["close_reason"], record["received_bytes"]) == ("ok", total)


def test_connections_share_the_bytes_of_a_second(mesh: Mesh, client: Pod, server: Pod, service: str) -> None:
    arrived: dict[int, int] = {}

    def sink(connection: socket.socket, _peer: str) -> None:
        while data := connection.recv(65536):
            arrived[connection.fileno()] = arrived.get(connection.fileno(), 0) + len(data)

    server.serve(8080, sink)
    rate = 200_000
    _apply(mesh, f"rateLimit: {{bytesPerSecond: {rate}, bytesBurst: {rate // 10}}}")
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(client.connect(service, 80)) for _ in range(4)]
        began = time.monotonic()

        def send(connection: socket.socket) -> None:
            with contextlib.suppress(OSError):
                connection.sendall(bytes(4 * rate))

        senders = [threading.Thread(target=send, args=(each,)) for each in connections]
        for each in senders:
            each.start()
        wait_for("two seconds' worth", lambda: sum(arrived.values()) >= 2 * rate)
        elapsed = time.monotonic() - began
        moved = dict(arrived)
        for connection in connections:
            connection.shutdown(socket.SHUT_RDWR)  # wakes the senders up
    for each in senders:
        each.join()
    assert sum(moved.values()) <= 1.5 * (elapsed * rate + rate // 10) + 4 * _ONE_READ_BYTES
    assert len(moved) == 4, "nobody starves"
    assert min(moved.values()) * 4 >= max(moved.values())


def test_a_reset_and_a_cut_are_heard_while_bytes_wait(mesh: Mesh, client: Pod, server: Pod, service: str) -> None:
    ends: list[str] = []

    def sink(connection: socket.socket, _peer: str) -> None:
        try:
            while connection.recv(65536):
                pass
            ends.append("eof")
        except ConnectionResetError:
            ends.append("reset")

    server.serve(8080, sink)
    _apply(mesh, "rateLimit: {bytesPerSecond: 10, bytesBurst: 10, perSource: true}")
    with client.connect(service, 80) as connection:
        connection.sendall(bytes(100_000))  # two hours' worth
        wait_for("the first bytes", lambda: any(row["received_bytes"] for row in mesh.ringfence(1, "connections")))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_for("the reset", lambda: ends == ["reset"])
    assert mesh.record(1, direction="outbound")["close_reason"] == "downstream_reset"

    other = mesh.pod("other", node=1, service_account="other")
    with other.connect(service, 80) as connection:
        connection.sendall(bytes(100_000))
        wait_for("the first bytes", lambda: any(row["received_bytes"] for row in mesh.ringfence(1, "connections")))
        other.delete()
        wait_for("the cut", lambda: ends == ["reset", "reset"])
    assert mesh.record(1, source_workload="default/other")["close_reason"] == "workload_removed"


# -- faults -------------------------------------------------------------------------


def test_every_connection_is_refused_or_none_and_it_is_told_loudly(
    mesh: Mesh, client: Pod, server: Pod, service: str
) -> None:
    server.serve_echo(8080)
    before = mesh.metric(1, "ringfence_faults_injected_total", kind="refuse")
    _apply(mesh, "faults: [{percent: 100, refuse: true}]")
    assert all(_is_refused(client, service) for _ in range(4))
    record = _records(mesh, 4)[0]
    assert (record["close_reason"], record["response_flags"], record["attempts"]) == ("fault_injected", "FAULT", 0)
    assert record["fault"] == record["detail"] == "refused by TrafficPolicy default/web"
    assert mesh.metric(1, "ringfence_faults_injected_total", kind="refuse") == before + 4
    assert _fault_warnings(mesh) == ["faults are injected into connections to default/web (TrafficPolicy default/web)"]
    _apply(mesh, "faults: [{percent: 0, refuse: true}]")
    assert not any(_is_refused(client, service) for _ in range(4))
    assert _fault_warnings(mesh) == []


def test_a_fault_is_for_the_sources_that_it_names(mesh: Mesh, client: Pod, server: Pod, service: str) -> None:
    other = mesh.pod("other", node=1, service_account="other")
    server.serve_echo(8080)
    _apply(mesh, f'faults: [{{percent: 100, refuse: true, sources: ["{client.identity}"]}}]')
    assert _is_refused(client, service)
    assert not _is_refused(other, service)


def test_a_delayed_connection_works_and_says_that_it_was_delayed(
    mesh: Mesh, client: Pod, server: Pod, service: str
) -> None:
    server.serve_whoami(8080)
    _apply(mesh, "faults: [{percent: 100, delay: 300ms}]")
    assert client.ask_whoami(service, 80)[0] == "web"
    record = mesh.record(1, direction="outbound")
    assert (record["close_reason"], record["fault"]) == ("ok", "delay of 0.3 s by TrafficPolicy default/web")
    assert record["duration_ms"] >= 300
    assert record["connect_ms"] < record["duration_ms"] - 290, "the delay is not the endpoint's"


def _echo_a_megabyte(pod: Pod, ip: str) -> None:
    with pod.connect(ip, 80) as connection:
        for _ in range(128):
            connection.sendall(bytes(8192))
            assert connection.recv(8192, socket.MSG_WAITALL), "an end in order"


@pytest.mark.parametrize("is_meshed", [True, False], ids=["tunnel", "plain"])
@pytest.mark.parametrize("limit", [0, 1000, 100_000])
def test_a_connection_is_reset_after_so_many_bytes(mesh: Mesh, client: Pod, limit: int, is_meshed: bool) -> None:
    server = mesh.pod("web", node=2, labels={"app": "web"}, mesh=is_meshed)
    service, _ = mesh.service("web", app="web", port=80, target_port=8080)
    server.serve_echo(8080)
    _apply(mesh, f"faults: [{{percent: 100, resetAfterBytes: {limit}}}]")
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        _echo_a_megabyte(client, service)
    record = mesh.record(1, direction="outbound")
    assert record["close_reason"] == "fault_injected"
    assert record["fault"] == record["detail"] == f"reset after {limit} bytes by TrafficPolicy default/web"
    assert limit <= record["sent_bytes"] + record["received_bytes"] <= limit + _ONE_READ_BYTES
    if is_meshed:
        assert mesh.record(2, direction="inbound")["close_reason"] == "fault_injected"


def test_a_connection_that_ends_before_is_not_disturbed(mesh: Mesh, client: Pod, server: Pod, service: str) -> None:
    server.serve_whoami(8080)
    _apply(mesh, "faults: [{percent: 100, resetAfterBytes: 1000}]")
    assert client.ask_whoami(service, 80)[0] == "web"
    record: dict[str, Any] = mesh.record(1, direction="outbound")
    assert (record["close_reason"], record["fault"]) == ("ok", None)
