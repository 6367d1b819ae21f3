"""Active health checks: endpoints that fail are found before a connection is spent on them."""

import os
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from tests.certificates import WEB, make_root, pem
from tests.mesh_builder import DEADLINE_S, Mesh, Pod, read_all, wait_for

pytestmark = pytest.mark.mesh

_INTERVAL_S = 0.2
_POLICY = """\
apiVersion: ringfence.io/v1alpha1
kind: TrafficPolicy
metadata: {{name: web}}
spec:
  targetRef: {{kind: Service, name: web}}
  loadBalancing: {{policy: round-robin}}
  outlierDetection: {{enabled: false}}
  healthCheck: {{{check}, interval: 200ms, timeout: 200ms, unhealthyThreshold: 2}}
"""
# Says its name inside TLS; prints its pid.
_TLS_SERVER = """
import os, socket, ssl, sys, threading
name, certificate = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate)
listener = socket.create_server(("::", 8080), family=socket.AF_INET6, dualstack_ipv6=True)
print(os.getpid(), flush=True)
def serve(connection):
    try:
        with context.wrap_socket(connection, server_side=True) as tls:
            tls.sendall(name.encode())
    except OSError:
        pass
while True:
    threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()
"""


def _backends(mesh: Mesh, count: int, *, enrolled: bool = True) -> tuple[list[Pod], str]:
    pods = [mesh.pod(f"web-{number}", node=2, labels={"app": "web"}, mesh=enrolled) for number in range(count)]
    service, _ = mesh.service("web", app="web", port=80, target_port=8080)
    return pods, service


def _apply(mesh: Mesh, check: str) -> None:
    mesh.apply(_POLICY.format(check=check))


def _health(mesh: Mesh, pod: Pod, *, seen_from: int = 1) -> tuple[str, str | None]:
    (row,) = (row for row in mesh.ringfence(seen_from, "endpoints", "web") if row["address"] == f"{pod.ipv4}:8080")
    return row["health"], row["why"]


def _wait_until(mesh: Mesh, pod: Pod, health: str, why: str | None = None) -> None:
    wait_for(f"{pod.name} to be {health}: {why}", lambda: _health(mesh, pod) == (health, why))


def _checks(mesh: Mesh, **labels: str) -> float:
    return mesh.metric(1, "ringfence_health_checks_total", **labels)


def _tls_server(pod: Pod, directory: Path) -> int:
    leaf = make_root().leaf(WEB)
    file = directory / f"{pod.name}.pem"
    key = leaf.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(key + pem(leaf.certificate))
    server = pod.spawn(sys.executable, "-c", _TLS_SERVER, pod.name, str(file), stdout=subprocess.PIPE)
    assert server.stdout is not None
    return int(server.stdout.readline())


def _ask_tls(client: Pod, service: str) -> str:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with context.wrap_socket(client.connect(service, 80)) as tls:
        return read_all(tls).decode()


def test_an_endpoint_that_stops_listening_is_found_and_no_connection_is_spent_on_it(mesh: Mesh) -> None:
    client = mesh.pod("client", node=1)
    pods, service = _backends(mesh, 3)
    for pod in pods:
        pod.serve_whoami(8080)
    _apply(mesh, "type: tcp")
    opened = mesh.metric(1, "istio_tcp_connections_opened_total")
    opened_there = mesh.metric(2, "istio_tcp_connections_opened_total")
    succeeded, failed = _checks(mesh, result="success"), _checks(mesh, result="failure")
    answers: list[str] = []

    def ask() -> str:
        answers.append(client.ask_whoami(service, 80)[0])
        return answers[-1]

    ask()
    wait_for("checks that succeed", lambda: _checks(mesh, result="success") >= succeeded + 6)
    assert _checks(mesh, result="failure") == failed

    pods[0].close()
    _wait_until(mesh, pods[0], "unhealthy", "health check: connect_refused")
    assert {ask() for _ in range(12)} == {"web-1", "web-2"}

    pods[0].serve_whoami(8080)
    _wait_until(mesh, pods[0], "healthy")
    wait_for("connections that it gets again", lambda: ask() == "web-0")

    asked = len(answers)
    for node, before in ((1, opened), (2, opened_there)):
        wait_for("the records", lambda: len(mesh.records(node)) >= asked)  # noqa: B023
        assert len(mesh.records(node)) == asked, "a check is no connection"
        assert mesh.metric(node, "istio_tcp_connections_opened_total") - before == asked
    assert {record["attempts"] for record in mesh.records(1)} == {1}


def test_what_speaks_no_tls_fails_a_tls_check(mesh: Mesh, tmp_path: Path) -> None:
    client = mesh.pod("client", node=1)
    pods, service = _backends(mesh, 2)
    pods[0].serve_whoami(8080)
    _tls_server(pods[1], tmp_path)
    _apply(mesh, "type: tls")
    client.connect(service, 80).close()
    _wait_until(mesh, pods[0], "unhealthy", "health check: not_tls")
    assert {_ask_tls(client, service) for _ in range(4)} == {"web-1"}
    assert _health(mesh, pods[1]) == ("healthy", None)


def test_a_paused_program_is_found_by_a_tls_check_and_has_its_share_when_it_goes_on(mesh: Mesh, tmp_path: Path) -> None:
    client = mesh.pod("client", node=1)
    pods, service = _backends(mesh, 2)
    pids = [_tls_server(pod, tmp_path) for pod in pods]
    _apply(mesh, "type: tls")
    for pod in pods:
        wait_for(f"connections to {pod.name}", lambda: _ask_tls(client, service) == pod.name)  # noqa: B023
    os.kill(pids[0], signal.SIGSTOP)
    try:
        _wait_until(mesh, pods[0], "unhealthy", "health check: handshake_timeout")
        assert {_ask_tls(client, service) for _ in range(4)} == {"web-1"}
    finally:
        os.kill(pids[0], signal.SIGCONT)
    _wait_until(mesh, pods[0], "healthy")
    wait_for("connections that it gets again", lambda: _ask_tls(client, service) == "web-0")


def test_when_all_are_unhealthy_all_are_served(mesh: Mesh) -> None:
    client = mesh.pod("client", node=1)
    pods, service = _backends(mesh, 2)
    for pod in pods:
        pod.serve_whoami(8080)
    _apply(mesh, "port: 9")  # where nobody listens
    client.ask_whoami(service, 80)
    for pod in pods:
        _wait_until(mesh, pod, "unhealthy", "health check: connect_refused")
    for pod in pods:
        wait_for(f"connections to {pod.name}", lambda: client.ask_whoami(service, 80)[0] == pod.name)  # noqa: B023


def test_checks_end_with_their_policy_and_what_they_found_is_forgotten(mesh: Mesh) -> None:
    client = mesh.pod("client", node=1)
    pods, service = _backends(mesh, 2)
    pods[1].serve_whoami(8080)
    with mesh.applied(_POLICY.format(check="type: tcp")):
        client.ask_whoami(service, 80)
        _wait_until(mesh, pods[0], "unhealthy", "health check: connect_refused")
    _wait_until(mesh, pods[0], "healthy")
    before = _checks(mesh)
    time.sleep(5 * _INTERVAL_S)  # in which there would be ten
    assert _checks(mesh) <= before + 2, "those that were under way"


def test_a_service_that_nobody_uses_is_not_checked(mesh: Mesh) -> None:
    mesh.pod("client", node=1)
    _backends(mesh, 2)
    _apply(mesh, "type: tcp")
    before = _checks(mesh)
    time.sleep(5 * _INTERVAL_S)
    assert _checks(mesh) == before


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_a_program_sees_a_check_as_a_connection_of_the_client_that_ends_at_once(mesh: Mesh, family: str) -> None:
    client = mesh.pod("client", node=1)
    server = mesh.pod("web", node=2, labels={"app": "web"})
    addresses = mesh.service("web", app="web", port=80, target_port=8080)
    _apply(mesh, "type: tcp")
    said: list[bytes] = []
    with server.listen(8080) as listener, client.connect(addresses[family == "ipv6"], 80) as connection:
        connection.sendall(b"x")
        while said.count(b"") < 3 or b"x" not in said:
            accepted, peer = listener.accept()
            with accepted:
                accepted.settimeout(DEADLINE_S)
                assert peer[0].removeprefix("::ffff:") == getattr(client, family)
                said.append(accepted.recv(1))  # an orderly end, and not a byte, or it is our connection
    assert said.count(b"x") == 1


def test_a_program_that_wants_the_proxy_protocol_is_told_that_it_is_a_check(mesh: Mesh) -> None:
    client = mesh.pod("client", node=1)
    server = mesh.pod("web", node=2, labels={"app": "web"})
    annotations = '{ringfence.io/proxy-protocol: "8080"}'
    mesh.lab("apply", "-", stdin=f"apiVersion: v1\nkind: Pod\nmetadata: {{name: web, annotations: {annotations}}}\n")
    service, _ = mesh.service("web", app="web", port=80, target_port=8080)
    _apply(mesh, "type: tcp")
    said: set[bytes] = set()
    with server.listen(8080) as listener, client.connect(service, 80):
        while len(said) < 2:
            accepted, _ = listener.accept()
            with accepted:
                accepted.settimeout(DEADLINE_S)
                said.add(accepted.recv(16)[12:14])
    assert said == {bytes([0x21, 0x11]), bytes([0x20, 0])}, "PROXY, and LOCAL for the check"


def test_an_endpoint_outside_the_mesh_is_checked_directly(mesh: Mesh) -> None:
    client = mesh.pod("client", node=1)
    pods, service = _backends(mesh, 2, enrolled=False)
    pods[1].serve_whoami(8080)
    _apply(mesh, "type: tcp")
    client.ask_whoami(service, 80)
    _wait_until(mesh, pods[0], "unhealthy", "health check: connect_refused")
    assert {client.ask_whoami(service, 80)[0] for _ in range(4)} == {"web-1"}
    pods[0].serve_whoami(8080)
    _wait_until(mesh, pods[0], "healthy")


def test_an_endpoint_behind_a_cut_link_is_unhealthy_from_there_only(mesh: Mesh) -> None:
    clients = [mesh.pod(f"client-{node}", node=node) for node in (1, 2)]
    pods = [mesh.pod(f"web-{node}", node=node, labels={"app": "web"}) for node in (1, 2)]
    service, _ = mesh.service("web", app="web", port=80, target_port=8080)
    for pod in pods:
        pod.serve_whoami(8080)
    _apply(mesh, "type: tcp")
    for client in clients:
        client.ask_whoami(service, 80)
    with mesh.cut(1, 2):
        for node, there in ((1, pods[1]), (2, pods[0])):
            wait_for(f"{there.name} to be unhealthy", lambda: _health(mesh, there, seen_from=node)[0] == "unhealthy")  # noqa: B023
        for node, here in ((1, pods[0]), (2, pods[1])):
            assert _health(mesh, here, seen_from=node) == ("healthy", None)
            assert {clients[node - 1].ask_whoami(service, 80)[0] for _ in range(4)} == {here.name}
    for node, there in ((1, pods[1]), (2, pods[0])):
        wait_for(f"{there.name} to be healthy", lambda: _health(mesh, there, seen_from=node)[0] == "healthy")  # noqa: B023
