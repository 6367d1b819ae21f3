"""Point 8: whatever is down, an enrolled pod's connections are encrypted and identified, or they fail."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from labkit import pcap
from tests.mesh_builder import STATE_DIR, Mesh, Pod, read_all, wait_for
from tests.mesh_faults import edited, readyz

pytestmark = pytest.mark.mesh

_SHORT_TTL_S: Final = 10


def _is_refused(pod: Pod, ip: str, port: int) -> bool:
    try:
        pod.connect(ip, port).close()
    except ConnectionRefusedError:
        return True
    return False


def _answer(pod: Pod, ip: str, port: int) -> str | None:
    """The first word of ``serve_whoami``, or None if the connection failed, in whatever way but a clean one."""
    try:
        return pod.ask_whoami(ip, port)[0]
    except OSError:
        return None


# -- agents -----------------------------------------------------------------------


def test_without_its_agent_a_pod_connects_to_nobody_and_nobody_to_it(mesh: Mesh, tmp_path: Path) -> None:
    client = mesh.pod("client", node=1)
    server = mesh.pod("server", node=2)
    outside = mesh.pod("outside", node=2, mesh=False)
    for pod in (client, server, outside):
        pod.serve_whoami(8080)
    assert client.ask_whoami(server.ipv4, 8080)[0] == "server"
    recording = tmp_path / "link.pcap"

    with mesh.tapped(recording):
        with mesh.stopped("agent-1", how="kill"):
            for ip in (server.ipv4, server.ipv6, outside.ipv4):
                assert _is_refused(client, ip, 8080)
            for ip in (client.ipv4, client.ipv6):
                assert _is_refused(outside, ip, 8080)
                assert _answer(server, ip, 8080) is None
            began = time.monotonic()
        assert client.ask_whoami(server.ipv4, 8080)[0] == "server"
    print(f"serving again {time.monotonic() - began:.2f} s after the start")  # the contract is 2 s on an idle machine

    flows = {(flow.source, flow.destination_port) for flow in pcap.connections(pcap.packets(recording))}
    assert {port for source, port in flows if source in (client.ipv4, client.ipv6)} <= {15008}
    record = mesh.record(2, direction="outbound", original_destination=f"{client.ipv4}:8080")
    assert record["close_reason"] == "peer_unavailable"


@pytest.mark.parametrize("which", ["source", "destination"])
@pytest.mark.parametrize("direction", ["download", "upload"])
def test_a_transfer_that_loses_an_agent_is_reset_never_ended(mesh: Mesh, which: str, direction: str) -> None:
    """A FIN in the middle of a stream would call what is left of it whole."""
    client = mesh.pod("client", node=1)
    server = mesh.pod("server", node=2)
    listener = server.listen(8080)
    with listener, client.connect(server.ipv4, 8080) as near:
        far, _ = listener.accept()
        with far:
            far.settimeout(60)
            near.sendall(b"x")
            assert far.recv(1) == b"x"
            source, sink = (far, near) if direction == "download" else (near, far)
            moved = threading.Event()
            ends: list[BaseException | bytes] = []
            threads = [
                threading.Thread(target=_pour, args=(source,)),
                threading.Thread(target=_swallow, args=(sink, moved, ends)),
            ]
            for thread in threads:
                thread.start()
            try:
                assert moved.wait(60)
                with mesh.stopped("agent-1" if which == "source" else "agent-2", how="kill"):
                    for thread in threads:
                        thread.join(60)
                        assert not thread.is_alive()
            finally:
                for end in (near, far):
                    end.close()
    assert [type(end) for end in ends] == [ConnectionResetError]


def _pour(connection: socket.socket) -> None:
    try:
        while True:
            connection.sendall(b"y" * 65536)
    except OSError:
        pass


def _swallow(connection: socket.socket, moved: threading.Event, ends: list[BaseException | bytes]) -> None:
    """Read until the end, whatever it is, and file it."""
    try:
        while data := connection.recv(65536):
            moved.set()
        ends.append(data)
    except OSError as error:
        ends.append(error)


# -- the CA -----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["killed", "cut off"])
def test_without_the_ca_running_and_new_connections_go_on(mesh: Mesh, how: str) -> None:
    client = mesh.pod("client", node=1)
    server = mesh.pod("server", node=2, labels={"app": "server"})
    server.serve_echo(8080)
    server.serve_whoami(8081)
    with client.connect(server.ipv4, 8080) as running:
        running.sendall(b"before")
        assert running.recv(6) == b"before"
        with mesh.stopped("ca", how="kill") if how == "killed" else mesh.cut(0, 1):
            assert client.ask_whoami(server.ipv4, 8081)[0] == "server"
            # A new pod whose identity is at hand is no reason to ask the CA.
            newcomer = mesh.pod("newcomer", node=1)
            assert newcomer.ask_whoami(server.ipv4, 8081)[0] == "server"
            running.sendall(b"during")
            assert running.recv(6) == b"during"
            assert mesh.ringfence(1, "status")["ready"]
        running.sendall(b"after")
        assert running.recv(5) == b"after"


@pytest.mark.parametrize("how", ["killed", "cut off"])
def test_a_new_identity_without_the_ca_waits_then_fails_and_heals_by_itself(mesh: Mesh, how: str) -> None:
    server = mesh.pod("server", node=2)
    server.serve_whoami(8080)
    account = f"new-{how.partition(' ')[0]}"
    with mesh.stopped("ca", how="kill") if how == "killed" else mesh.cut(0, 1):
        client = mesh.pod("client", node=1, service_account=account)
        began = time.monotonic()
        with client.connect(server.ipv4, 8080) as connection:
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
        waited_s = time.monotonic() - began
        print(f"failed after {waited_s:.2f} s")
        assert waited_s > 4.5

        record = mesh.record(1, direction="outbound")
        assert record["close_reason"] == "identity_unavailable"
        assert str(client.identity) in record["detail"]
        assert "CA" in record["detail"]
        code, reasons = readyz(mesh, 1)
        assert code == 503
        assert any(str(client.identity) in reason for reason in reasons)
        assert not mesh.ringfence(1, "status")["ca"]["reachable"]
    wait_for("it to heal", lambda: _answer(client, server.ipv4, 8080) == "server")
    assert wait_for("readiness", lambda: readyz(mesh, 1)[0] == 200)
    assert client.ask_whoami(server.ipv6, 8080)[0] == "server"


def test_an_agent_that_starts_without_the_ca_keeps_connections_waiting_and_says_why(mesh: Mesh) -> None:
    client = mesh.pod("client", node=1)
    server = mesh.pod("server", node=2)
    for pod in (client, server):
        pod.serve_whoami(8080)
    with _patient_agent(), mesh.stopped("ca", how="kill"):
        mesh.lab("restart", "agent-1", "--no-wait")
        wait_for("the pod to be served", lambda: _is_served(mesh, 1, "client"))
        code, reasons = readyz(mesh, 1)
        assert code == 503
        assert any(str(client.identity) in reason and "CA" in reason for reason in reasons), reasons

        waiting = [client.connect(server.ipv4, 8080), server.connect(client.ipv4, 8080)]
        for connection in waiting:
            connection.settimeout(0.5)
            with pytest.raises(TimeoutError):
                connection.recv(1)
    for connection, expected in zip(waiting, (b"server ", b"client "), strict=True):
        connection.settimeout(60)
        with connection:
            assert read_all(connection).startswith(expected)
    wait_for("readiness", lambda: readyz(mesh, 1)[0] == 200)
    assert {each["close_reason"] for each in mesh.records(1)} <= {"ok"}
    mesh.lab("restart", "agent-1")


@contextmanager
def _patient_agent() -> Iterator[None]:
    """Who restarts agent 1 in the block gets one whose connections wait for the CA for as long as it takes to start."""
    with edited(STATE_DIR / "agent-1" / "agent.toml", "[agent]\n", "[proxy]\nidentity_wait_s = 60\n[agent]\n"):
        yield


def _is_served(mesh: Mesh, node: int, name: str) -> bool:
    try:
        rows: list[dict[str, Any]] = mesh.ringfence(node, "workloads")
    except AssertionError:
        return False  # it does not answer yet
    return any(row["name"] == name and row["state"] == "serving" for row in rows)


# -- the link ---------------------------------------------------------------------


def test_a_cut_link_fails_new_connections_and_spares_the_running_ones(mesh: Mesh) -> None:
    client = mesh.pod("client", node=1)
    server = mesh.pod("server", node=2)
    server.serve_echo(8080)
    server.serve_whoami(8081)
    with mesh.configured(connect_timeout_s=1.5):
        with client.connect(server.ipv4, 8080) as running:
            running.sendall(b"before")
            assert running.recv(6) == b"before"
            assert client.ask_whoami(server.ipv4, 8081)[0] == "server"
            with mesh.cut(1, 2):
                running.sendall(b"during")
                assert _answer(client, server.ipv4, 8081) is None  # on the tunnel that there is
                assert _answer(client, server.ipv4, 8081) is None  # on a new one
                failed = wait_for("two failures", lambda: _failures(mesh, 2))
                assert [each["close_reason"] for each in failed] == ["verdict_timeout", "peer_unavailable"]
                assert "no answer" in failed[1]["detail"]
            assert running.recv(6) == b"during"
            assert client.ask_whoami(server.ipv4, 8081)[0] == "server"


def _failures(mesh: Mesh, count: int) -> list[dict[str, Any]] | None:
    found = [each for each in mesh.records(1, direction="outbound") if each["close_reason"] != "ok"]
    return found if len(found) == count else None


# -- the registry -----------------------------------------------------------------


@pytest.mark.parametrize("how", ["removed", "unreadable"])
def test_without_its_manifests_the_mesh_stays_as_it_was(mesh: Mesh, how: str) -> None:
    client = mesh.pod("client", node=1)
    server = mesh.pod("server", node=2, labels={"app": "server"})
    server.serve_whoami(8080)
    service, _ = mesh.service("server", app="server", port=80, target_port=8080)
    with _lost_manifests(unreadable=how == "unreadable"):
        for node in (1, 2):
            problem = wait_for("the problem", lambda: mesh.ringfence(1, "status")["registry"]["problems"])[0]
            assert problem["file"] == str(STATE_DIR / "manifests")
            assert "last good state stays in force" in problem["reason"]
            code, reasons = readyz(mesh, node)
            assert code == 503
            assert any(str(STATE_DIR / "manifests") in reason for reason in reasons), reasons
        assert client.ask_whoami(service, 80)[0] == "server"
    wait_for("readiness", lambda: readyz(mesh, 1)[0] == 200)
    assert mesh.ringfence(1, "status")["registry"]["problems"] == []
    newcomer = mesh.pod("newcomer", node=1)
    assert newcomer.ask_whoami(service, 80)[0] == "server"


@contextmanager
def _lost_manifests(*, unreadable: bool) -> Iterator[None]:
    """The directory is gone, or something else is in its place, for the length of the block."""
    path, aside = STATE_DIR / "manifests", STATE_DIR / "manifests-aside"
    path.rename(aside)
    if unreadable:
        path.touch()  # root reads every directory, but not what is none
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        aside.rename(path)


# -- certificates -----------------------------------------------------------------


@pytest.fixture
def short_lives() -> Iterator[Callable[[Mesh], None]]:
    """Call it: from now on, and until the test ends, the CA's certificates live for ten seconds."""
    config = STATE_DIR / "ca" / "ca.toml"
    meshes: list[Mesh] = []
    with edited(config, "[ca]\n", f"[ca]\nsvid_ttl_s = {_SHORT_TTL_S}\n"):

        def begin(mesh: Mesh) -> None:
            mesh.lab("restart", "ca")
            meshes.append(mesh)

        yield begin
    for mesh in meshes:
        mesh.lab("restart", "ca")


def _serial(mesh: Mesh, node: int, identity: str | None) -> str | None:
    row = next((each for each in mesh.ringfence(node, "certs") if each["identity"] == identity), None)
    return None if row is None else row["serial"]


def _tunnel_ports(server: Pod, client_ip: str) -> set[bytes]:
    """The source ports of the tunnels that are established to a pod from an address."""
    lines = server.run("ss", "-tnH", "state", "established", "sport = :15008").stdout.splitlines()
    return {line.split()[-1].rpartition(b":")[2] for line in lines if client_ip.encode() in line.split()[-1]}


def test_connections_outlive_their_certificates_and_tunnels_do_not(
    mesh: Mesh, short_lives: Callable[[Mesh], None]
) -> None:
    short_lives(mesh)
    client = mesh.pod("client", node=1, service_account="brief-client")
    server = mesh.pod("server", node=2, service_account="brief-server")
    server.serve_echo(8080)
    server.serve_whoami(8081)
    seen: dict[int, set[str | None]] = {1: set(), 2: set()}

    with client.connect(server.ipv4, 8080) as running:
        assert client.ask_whoami(server.ipv4, 8081)[0] == "server"
        first = _tunnel_ports(server, client.ipv4)
        until = time.monotonic() + _SHORT_TTL_S + 1
        while time.monotonic() < until:
            running.sendall(b"still there?")
            assert running.recv(12) == b"still there?"
            assert client.ask_whoami(server.ipv6, 8081)[0] == "server"
            seen[1].add(_serial(mesh, 1, client.identity))
            seen[2].add(_serial(mesh, 2, server.identity))
        # By now every certificate of the beginning has expired: what runs goes on, what is new is proven anew.
        assert client.ask_whoami(server.ipv4, 8081)[0] == "server"
        wait_for(
            "no tunnel of before but the connection's", lambda: len(first & _tunnel_ports(server, client.ipv4)) == 1
        )
        assert _tunnel_ports(server, client.ipv4) - first
        running.sendall(b"still there!")
        assert running.recv(12) == b"still there!"

    for node, serials in seen.items():
        assert len(serials) >= 3, (node, serials)
        assert None not in serials
    wait_for("the last record", lambda: not mesh.ringfence(1, "status")["connections"]["open"])
    assert {each["close_reason"] for node in (1, 2) for each in mesh.records(node)} == {"ok"}


def test_an_expired_certificate_closes_the_gate_until_the_ca_is_back(
    mesh: Mesh, short_lives: Callable[[Mesh], None]
) -> None:
    short_lives(mesh)
    client = mesh.pod("client", node=1, service_account="gone-client")
    server = mesh.pod("server", node=2)
    server.serve_whoami(8080)
    with _patient_agent():
        mesh.lab("restart", "agent-1")
    assert client.ask_whoami(server.ipv4, 8080)[0] == "server"
    with mesh.stopped("ca", how="kill"):
        assert client.ask_whoami(server.ipv4, 8080)[0] == "server"
        wait_for("the certificate's end", lambda: _serial(mesh, 1, client.identity) is None)
        connection = client.connect(server.ipv4, 8080)
        connection.settimeout(1)
        with pytest.raises(TimeoutError):  # it waits for a certificate, although there is an idle tunnel
            connection.recv(1)
        assert any(str(client.identity) in reason for reason in readyz(mesh, 1)[1])
    connection.settimeout(60)
    with connection:
        assert read_all(connection).startswith(b"server ")
    mesh.lab("restart", "agent-1")
