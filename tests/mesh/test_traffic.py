"""TrafficPolicy at work: endpoints that fail are left alone, and come back; who gets what."""

import socket
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ca.spiffe import SpiffeId
from node_agent.model import OriginalDestination, PeerAddress
from node_agent.proxy.proxy_protocol import header
from tests.mesh_builder import WORKERS, Mesh, Pod, read_all, wait_for
from tests.mesh_faults import is_reset

pytestmark = pytest.mark.mesh

_WORKERS = int(WORKERS)
_MORE_THAN_A_PROGRAM_TAKES = 4 * 1024 * 1024  # the kernel holds up to 2.6 MB for it; but less than a tunnel does
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


def _backends(mesh: Mesh, count: int = 3) -> tuple[list[Pod], str]:
    pods = [mesh.pod(f"web-{number}", node=2, labels={"app": "web", "slot": str(number)}) for number in range(count)]
    service, _ = mesh.service("web", app="web", port=80, target_port=8080)
    return pods, service


def _endpoint(mesh: Mesh, pod: Pod) -> dict[str, Any]:
    (found,) = (row for row in mesh.ringfence(1, "endpoints", "web") if row["address"] == f"{pod.ipv4}:8080")
    assert isinstance(found, dict)
    return found


def _assert_shares(client: Pod, service: str, shares: dict[str, int]) -> None:
    """Round robin is exact in one process; each worker goes round by itself and can be one off at either end of it."""
    asked = _WORKERS * sum(shares.values())
    answers = Counter(client.ask_whoami(service, 80)[0] for _ in range(asked))
    assert set(answers) == set(shares)
    off = {name: answers[name] - _WORKERS * share for name, share in shares.items()}
    assert max(map(abs, off.values())) <= (_WORKERS if _WORKERS > 1 else 0), answers


def test_an_endpoint_that_refuses_is_ejected_and_comes_back_and_no_client_notices(mesh: Mesh) -> None:
    client = mesh.pod("client", node=1)
    pods, service = _backends(mesh)
    for pod in pods[1:]:
        pod.serve_whoami(8080)
    _apply(
        mesh,
        "loadBalancing: {policy: round-robin}\n"
        "  outlierDetection: {consecutiveConnectFailures: 2, baseEjectionTime: 1s, maxEjectionTime: 1s,"
        " maxEjectionPercent: 50}",
    )
    answers = Counter(client.ask_whoami(service, 80)[0] for _ in range(12))
    assert set(answers) == {"web-1", "web-2"}, "no client may notice"
    ejected = wait_for("the ejection", lambda: (row := _endpoint(mesh, pods[0]))["health"] != "healthy" and row)
    assert ejected["why"] == "consecutive connect failures"
    attempts = [record["attempts"] for record in mesh.records(1, direction="outbound")]
    retried = attempts.count(2)
    assert 2 <= retried <= 2 * _WORKERS, "two failures in a row were retried, and then no worker tried any more"

    pods[0].serve_whoami(8080)
    wait_for("its time to be up", lambda: _endpoint(mesh, pods[0])["health"] == "probing")
    wait_for(
        "its share, in each worker",
        lambda: client.ask_whoami(service, 80)[0] == "web-0" and _endpoint(mesh, pods[0])["health"] == "healthy",
    )
    _assert_shares(client, service, {"web-0": 4, "web-1": 4, "web-2": 4})


def test_a_subset_and_weights_go_by_labels_and_change_at_once(mesh: Mesh) -> None:
    client = mesh.pod("client", node=1)
    pods, service = _backends(mesh)
    for pod in pods:
        pod.serve_whoami(8080)
    _apply(mesh, 'loadBalancing: {policy: round-robin, subset: {slot: "1"}}')
    assert {client.ask_whoami(service, 80)[0] for _ in range(6)} == {"web-1"}
    assert [_endpoint(mesh, pod)["weight"] for pod in pods] == [0.0, 1.0, 0.0]
    _apply(mesh, 'loadBalancing: {policy: round-robin, weights: [{matchLabels: {slot: "0"}, weight: 2}]}')
    _assert_shares(client, service, {"web-0": 6, "web-1": 3, "web-2": 3})


def test_a_hash_by_source_address_keeps_a_client_where_it_is(mesh: Mesh) -> None:
    clients = [mesh.pod(f"client-{number}", node=1) for number in range(3)]
    pods, service = _backends(mesh)
    for pod in pods:
        pod.serve_whoami(8080)
    _apply(mesh, "loadBalancing: {policy: consistent-hash}")
    for client in clients:
        assert len({client.ask_whoami(service, 80)[0] for _ in range(5)}) == 1


def test_attempts_of_a_policy_are_obeyed(mesh: Mesh) -> None:
    client = mesh.pod("client", node=1)
    _, service = _backends(mesh)
    _apply(mesh, "retry: {attempts: 2}")
    with pytest.raises(ConnectionResetError):
        client.ask_whoami(service, 80)
    assert mesh.record(1, direction="outbound")["attempts"] == 2


def test_a_policy_with_a_mistake_leaves_the_last_good_one_in_force(mesh: Mesh) -> None:
    client = mesh.pod("client", node=1)
    pods, service = _backends(mesh)
    for pod in pods:
        pod.serve_whoami(8080)
    _apply(mesh, 'loadBalancing: {subset: {slot: "2"}}')
    with pytest.raises(Exception, match=r"spec.loadBalancing.subst: is not known here"):
        _apply(mesh, 'loadBalancing: {subst: {slot: "0"}}')
    assert {client.ask_whoami(service, 80)[0] for _ in range(4)} == {"web-2"}


# -- times ------------------------------------------------------------------------------


def _echo(mesh: Mesh, timeouts: str) -> tuple[Pod, Pod, str]:
    client = mesh.pod("client", node=1)
    server = mesh.pod("web", node=2, labels={"app": "web"})
    service, _ = mesh.service("web", app="web", port=80, target_port=8080)
    _apply(mesh, f"timeouts: {{{timeouts}}}")
    return client, server, service


def _both_records(mesh: Mesh, reason: str) -> None:
    for node in (1, 2):
        record = mesh.record(node, close_reason=reason)
        assert record["response_flags"] == "TIMEOUT"


def test_an_idle_connection_is_cut_and_a_busy_one_is_not(mesh: Mesh) -> None:
    client, server, service = _echo(mesh, "idle: 500ms")
    server.serve_echo(8080)
    with client.connect(service, 80) as idle, client.connect(service, 80) as busy:
        idle.sendall(b"x")
        assert idle.recv(1) == b"x"

        def still_served() -> bool:
            busy.sendall(b"y")
            assert busy.recv(1) == b"y"
            return bool(mesh.records(1, close_reason="idle_timeout"))

        wait_for("the idle one to be cut", still_served)
        with pytest.raises(ConnectionResetError):
            idle.recv(1)
        assert len(mesh.records(1, close_reason="idle_timeout")) == 1
    _both_records(mesh, "idle_timeout")


def test_a_connection_may_not_live_longer_than_that(mesh: Mesh) -> None:
    client, server, service = _echo(mesh, "lifetime: 1s")
    server.serve_echo(8080)

    def talk() -> None:
        while True:
            connection.sendall(b"y")
            assert connection.recv(1) == b"y"

    with client.connect(service, 80) as connection, pytest.raises((ConnectionResetError, BrokenPipeError)):
        talk()
    _both_records(mesh, "lifetime_exceeded")


def test_a_half_closed_connection_is_not_waited_for_for_ever(mesh: Mesh) -> None:
    client, server, service = _echo(mesh, "halfClosed: 500ms")
    listener = server.listen(8080)
    with client.connect(service, 80) as connection:
        accepted, _ = listener.accept()
        with accepted:
            connection.shutdown(socket.SHUT_WR)
            assert accepted.recv(1) == b""
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
    listener.close()
    _both_records(mesh, "idle_timeout")


def test_a_program_that_does_not_accept_has_the_time_of_its_service(mesh: Mesh) -> None:
    client, server, service = _echo(mesh, "connect: 500ms}\n  retry: {attempts: 1")
    full = server.listen(8080, backlog=0)
    with full, server.connect("127.0.0.1", 8080):  # it takes one; from now on the kernel drops every SYN
        assert is_reset(client, service, 80)
    for node in (1, 2):
        record = mesh.record(node, close_reason="connect_timeout")
        assert "port 8080 within 0.5 s" in record["detail"]


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_program_that_does_not_read_is_cut_after_its_time(mesh: Mesh, who: str) -> None:
    client, server, service = _echo(mesh, "stalledWrite: 700ms")
    listener = server.listen(8080)
    with client.connect(service, 80) as connection:
        accepted, _ = listener.accept()
        with accepted:
            writer = accepted if who == "client" else connection
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                writer.sendall(bytes(256 << 20))
            assert mesh.record(1, direction="outbound")["close_reason"] == "stalled_write"
            # Behind bytes that nobody takes no reason gets through; that it was no clean end does.
            reason = mesh.record(2, direction="inbound")["close_reason"]
            assert reason == "stalled_write" or (who == "server" and reason == "tunnel_lost")
    listener.close()


def test_a_program_that_ends_and_does_not_read_does_not_hold_up_the_next_connection(mesh: Mesh) -> None:
    client, server, service = _echo(mesh, "idle: 1h")
    other, _ = mesh.service("other", app="web", port=80, target_port=8081)
    server.serve_whoami(8081)
    listener = server.listen(8080)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with client.connect(service, 80) as connection:
        deaf, _ = listener.accept()
        deaf.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
        connection.sendall(bytes(_MORE_THAN_A_PROGRAM_TAKES))
    with listener, deaf:
        assert mesh.record(1, service="default/web:80")["close_reason"] == "ok"  # all of it is on its way
        assert mesh.ringfence(2, "connections"), "and not at the program"
        assert client.ask_whoami(other, 80)[0] == "web"
        assert mesh.record(1, service="default/other:80")["attempts"] == 1
        assert len(read_all(deaf)) == _MORE_THAN_A_PROGRAM_TAKES


# -- a split --------------------------------------------------------------------------


def _split(mesh: Mesh, first: int, second: int) -> None:
    mesh.apply(
        "apiVersion: gateway.networking.k8s.io/v1alpha2\nkind: TCPRoute\nmetadata: {name: canary}\nspec:\n"
        '  parentRefs: [{group: "", kind: Service, name: web, port: 80}]\n'
        f"  rules: [{{backendRefs: [{{name: v1, port: 80, weight: {first}}},"
        f" {{name: v2, port: 80, weight: {second}}}]}}]\n"
    )


def test_a_canary_gets_its_weight_and_a_change_moves_new_connections_at_once(mesh: Mesh) -> None:
    client = mesh.pod("client", node=1)
    for version in ("v1", "v2"):
        mesh.pod(version, node=2, labels={"app": version}).serve_whoami(8080)
        mesh.service(version, app=version, port=80, target_port=8080)
    service, _ = mesh.service("web", app="nobody", port=80, target_port=8080)
    _split(mesh, 1, 0)
    assert {client.ask_whoami(service, 80)[0] for _ in range(10)} == {"v1"}
    _split(mesh, 0, 1)
    assert {client.ask_whoami(service, 80)[0] for _ in range(10)} == {"v2"}
    _split(mesh, 1, 1)
    answers = Counter(client.ask_whoami(service, 80)[0] for _ in range(100))
    assert 25 <= answers["v1"] <= 75, "a hundred throws of a coin"
    record = mesh.records(1, direction="outbound")[-1]
    assert record["service"] in ("default/v1:80", "default/v2:80")
    assert record["original_destination"] == f"{service}:80"


def test_what_falls_to_a_backend_that_does_not_exist_is_refused(mesh: Mesh) -> None:
    client = mesh.pod("client", node=1)
    service, _ = mesh.service("web", app="nobody", port=80, target_port=8080)
    _split(mesh, 1, 1)
    with pytest.raises(ConnectionResetError):
        client.ask_whoami(service, 80)
    record = mesh.record(1, close_reason="no_endpoints")
    assert "TCPRoute default/canary of default/web:80 leads to default/v" in record["detail"]


# -- what the application is told, and where it may go ---------------------------------------


def _first_bytes(server: Pod, connect: Callable[[], socket.socket], size: int) -> bytes:
    listener = server.listen(8080)
    with connect() as connection:
        connection.sendall(b"hello")
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(60)
            received = b""
            while len(received) < size:
                received += accepted.recv(size - len(received))
    listener.close()
    return received


def _wants_proxy_protocol(mesh: Mesh, pod: Pod) -> None:
    mesh.lab(
        "apply",
        "-",
        stdin=f"apiVersion: v1\nkind: Pod\nmetadata:\n  name: {pod.name}\n"
        '  annotations: {ringfence.io/proxy-protocol: "8080"}\n',
    )


@pytest.mark.parametrize("version", ["ipv4", "ipv6"])
def test_an_application_that_wants_it_is_told_who_the_client_is(mesh: Mesh, version: str) -> None:
    client = mesh.pod("client", node=1, service_account="cart")
    outsider = mesh.pod("outsider", node=1, mesh=False)
    server = mesh.pod("server", node=2)
    _wants_proxy_protocol(mesh, server)
    address = server.ipv4 if version == "ipv4" else server.ipv6

    ports: list[int] = []

    def connect_from(pod: Pod) -> socket.socket:
        connection = pod.connect(address, 8080)
        ports.append(connection.getsockname()[1])
        return connection

    for pod, identity in ((client, client.identity), (outsider, None)):
        source = PeerAddress(pod.ipv4 if version == "ipv4" else pod.ipv6, 0)
        proven = None if identity is None else SpiffeId.parse(identity)
        size = len(header(source, OriginalDestination(address, 8080), proven))
        received = _first_bytes(server, partial(connect_from, pod), size + 5)
        source = source._replace(port=ports[-1])
        assert received == header(source, OriginalDestination(address, 8080), proven) + b"hello"


def test_nginx_understands_the_header(mesh: Mesh, tmp_path: Path) -> None:
    client = mesh.pod("client", node=1)
    server = mesh.pod("server", node=2)
    _wants_proxy_protocol(mesh, server)
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {tmp_path}/pid; events {{}}\n"
        "http { access_log off; server { listen 8080 proxy_protocol;\n"
        '  location / { return 200 "$proxy_protocol_addr\\n"; } } }\n'
    )
    server.spawn("nginx", "-c", str(tmp_path / "nginx.conf"), "-e", str(tmp_path / "error.log"))
    server.wait_until_open(8080)
    answer = client.run("curl", "-sS", "--max-time", "15", f"http://{server.ipv4}:8080/")
    assert answer.stdout.decode().strip() == client.ipv4


def test_registry_only_lets_nothing_out_that_is_not_declared(mesh: Mesh) -> None:
    client = mesh.pod("client", node=1)
    server = mesh.pod("server", node=2)
    server.serve_whoami(8080)
    outside = mesh.node(2)
    outside.serve_whoami(9000)
    try:
        assert client.ask_whoami(outside.ipv4, 9000)[0] == "node-2"
        with mesh.configured(outbound_traffic_policy='"registry-only"'):
            wait_for("the pod", lambda: client.ask_whoami(server.ipv4, 8080)[0] == "server")
            with pytest.raises(ConnectionResetError):
                client.ask_whoami(outside.ipv4, 9000)
            record = mesh.record(1, close_reason="destination_not_allowed")
            assert "is no workload and no Service, and outbound_traffic_policy is registry-only" in record["detail"]
    finally:
        outside.close()
