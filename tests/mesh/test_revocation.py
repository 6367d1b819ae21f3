"""What is revoked loses its connections within seconds, at both ends and with the reason; nobody else notices."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

from tests.mesh_builder import STATE_DIR, Mesh, Pod, wait_for

pytestmark = pytest.mark.mesh

_REASON: Final = "laptop left on the train"


@contextmanager
def _revoked(mesh: Mesh, *what: str | None) -> Iterator[None]:
    """``ringfence ca revoke`` for the length of the block."""
    arguments = [str(each) for each in what]
    mesh.lab("ringfence", "ca", "revoke", *arguments, "--reason", _REASON)
    try:
        yield
    finally:
        mesh.lab("ringfence", "ca", "revoke", *arguments, "--undo")


def _opened(client: Pod, ip: str) -> socket.socket:
    """A connection to ``serve_echo`` that carries bytes."""
    connection = client.connect(ip, 8080)
    try:
        _echo(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _echo(connection: socket.socket) -> None:
    connection.sendall(b"still there?")
    assert connection.recv(12, socket.MSG_WAITALL) == b"still there?"


def _assert_cut(connection: socket.socket) -> None:
    with pytest.raises(ConnectionResetError):
        connection.recv(1)


def _fails(client: Pod, ip: str) -> bool:
    """Whether a new connection ends without an echo."""
    try:
        _opened(client, ip).close()
    except (OSError, AssertionError):
        return True
    return False


def _cert(mesh: Mesh, node: int, identity: str | None) -> dict[str, Any]:
    rows: list[dict[str, Any]] = mesh.ringfence(node, "certs")
    return next(each for each in rows if each["identity"] == identity)


def _both_records(mesh: Mesh, **fields: Any) -> list[dict[str, Any]]:
    """One record of the connection at each end: node 1 opened it, node 2 serves it."""
    return [mesh.record(1, direction="outbound", **fields), mesh.record(2, direction="inbound", **fields)]


def _assert_revoked(records: list[dict[str, Any]], why: str) -> None:
    """Both say so; whichever agent heard of it first knows the details."""
    for record in records:
        assert record["close_reason"] == "identity_revoked"
        assert record["response_flags"] == "IDENTITY_ERROR"
    assert any(why in record["detail"] and _REASON in record["detail"] for record in records), records


def test_a_revoked_identity_has_no_connections_until_it_is_undone(mesh: Mesh) -> None:
    thief = mesh.pod("thief", node=1, service_account="thief")
    other = mesh.pod("other", node=1, service_account="other")
    server = mesh.pod("server", node=2, service_account="server")
    outside = mesh.pod("outside", node=2, mesh=False)
    for pod in (thief, server, outside):
        pod.serve_echo(8080)

    with _opened(thief, server.ipv4) as out, _opened(server, thief.ipv4) as into, _opened(thief, outside.ipv4) as plain:
        with _opened(other, server.ipv4) as spared, _revoked(mesh, "identity", thief.identity):
            for connection in (out, into, plain):
                _assert_cut(connection)
            _echo(spared)
            # Both ends say why, those that dialled and those that were dialled.
            _assert_revoked(
                _both_records(mesh, source_workload="default/thief", destination_workload="default/server"),
                f"{thief.identity}: this identity is revoked",
            )
            for record in (
                mesh.record(1, direction="inbound", destination_workload="default/thief"),
                mesh.record(2, direction="outbound", destination_workload="default/thief"),
                mesh.record(1, direction="outbound", original_destination=f"{outside.ipv4}:8080"),
            ):
                assert record["close_reason"] == "identity_revoked"

            for client, ip in ((thief, server.ipv6), (server, thief.ipv6), (thief, outside.ipv6)):
                assert _fails(client, ip)
            for node, destination in ((1, server.ipv6), (2, thief.ipv6), (1, outside.ipv6)):
                refused = mesh.record(node, direction="outbound", original_destination=f"[{destination}]:8080")
                assert refused["close_reason"] == "identity_revoked"
            assert _cert(mesh, 1, thief.identity)["state"] == "revoked"
            assert _cert(mesh, 1, other.identity)["state"] == "valid"
            _echo(spared)
            _opened(other, server.ipv6).close()

        wait_for("a certificate", lambda: _cert(mesh, 1, thief.identity)["state"] == "valid")
        wait_for("the other agent to hear of it", lambda: not mesh.metric(2, "ringfence_revocations"))
        for client, ip in ((thief, server.ipv4), (server, thief.ipv4), (thief, outside.ipv4)):
            _opened(client, ip).close()


def test_a_revoked_certificate_is_replaced_and_what_it_carried_is_cut(mesh: Mesh) -> None:
    client = mesh.pod("client", node=1, service_account="client")
    server = mesh.pod("server", node=2, service_account="server")
    server.serve_echo(8080)
    server.serve_whoami(8081)
    client.ask_whoami(server.ipv4, 8081)
    wait_for("an idle tunnel", lambda: mesh.ringfence(1, "status")["tunnels"]["idle"] == 1)
    before = _cert(mesh, 2, server.identity)["serial"]

    with _opened(client, server.ipv4) as running, _revoked(mesh, "serial", before):
        _assert_cut(running)
        _assert_revoked(_both_records(mesh, original_destination=f"{server.ipv4}:8080"), f"{before} is revoked")
        wait_for("no idle tunnel", lambda: mesh.ringfence(1, "status")["tunnels"]["idle"] == 0)
        after = wait_for("another certificate", lambda: _cert(mesh, 2, server.identity)["serial"])
        assert after != before
        _opened(client, server.ipv4).close()


def test_a_revoked_node_loses_everything_and_comes_back_by_a_new_token(mesh: Mesh) -> None:
    lost = mesh.pod("lost", node=1, service_account="lost")
    also_lost = mesh.pod("also-lost", node=1, service_account="also-lost")
    server = mesh.pod("server", node=2, service_account="server")
    neighbour = mesh.pod("neighbour", node=2, service_account="neighbour")
    for pod in (server, neighbour, lost):
        pod.serve_echo(8080)
    token_file = STATE_DIR / "agent-1" / "join-token"
    before = {row["serial"] for row in mesh.ringfence(1, "certs")}

    with (
        _opened(lost, server.ipv4) as out,
        _opened(also_lost, server.ipv6) as out_too,
        _opened(server, lost.ipv4) as into,
        _opened(neighbour, server.ipv4) as spared,
        _revoked(mesh, "node", "node-1"),
    ):
        for connection in (out, out_too, into):
            _assert_cut(connection)
        _echo(spared)
        _opened(neighbour, server.ipv6).close()
        for pod in (lost, also_lost):
            record = mesh.record(2, direction="inbound", source_workload=pod.workload)
            assert record["close_reason"] == "identity_revoked"
            assert _fails(pod, server.ipv4)

        certs = wait_for("the node's own certificate to be gone", lambda: _all_gone(mesh))
        assert "revoked" in certs[0]["last_error"] or "token" in certs[0]["last_error"]

        # Rebuilt: the operator lets it in again, and what was stolen stays worthless.
        token = mesh.lab("ringfence", "ca", "token", "--node", "node-1")
        token_file.write_text(token)
        wait_for("new certificates", lambda: _all_valid(mesh, spared), deadline_s=45)
        assert not before & {row["serial"] for row in mesh.ringfence(1, "certs")}
        _opened(lost, server.ipv4).close()
        _opened(server, lost.ipv4).close()
        _echo(spared)


def _all_valid(mesh: Mesh, spared: socket.socket) -> bool:
    _echo(spared)  # all the while
    return all(row["state"] == "valid" for row in mesh.ringfence(1, "certs"))


def _all_gone(mesh: Mesh) -> list[dict[str, Any]] | None:
    rows: list[dict[str, Any]] = mesh.ringfence(1, "certs")
    return rows if all(row["serial"] is None for row in rows) and rows[0]["last_error"] else None


def test_what_can_not_be_revoked_is_refused_with_the_reason(mesh: Mesh) -> None:
    for arguments, words in (
        (("node", "node-77"), "never issued anything"),
        (("identity", "spiffe://cluster.local/ns/default/sa/nobody-here"), "no certificate was ever issued"),
        (("identity", "spiffe://cluster.local/ringfence/node/node-1"), "ringfence ca revoke node node-1"),
        (("identity", "web"), "spiffe://"),
        (("serial", "12345"), "has not issued it"),
        (("serial", "xyz"), "not a serial number"),
        (("serial", "12345", "--undo"), "is not revoked"),
    ):
        with pytest.raises(AssertionError, match=words):
            mesh.lab("ringfence", "ca", "revoke", *arguments)
    assert "nothing is revoked" in mesh.lab("ringfence", "ca", "revoke", "list")
