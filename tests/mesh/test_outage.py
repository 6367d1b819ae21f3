"""A CA that is down for longer than certificates live is all that stops traffic, and it is said long before."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

from tests.mesh_builder import STATE_DIR, Mesh, read_all, wait_for
from tests.mesh_faults import edited, readyz, warnings

pytestmark = pytest.mark.mesh

_TTL_S: Final = 20


@contextmanager
def _short_lives(mesh: Mesh) -> Iterator[None]:
    """The CA's certificates live for 20 seconds; the agents' own, too, after they were renewed once."""
    with edited(STATE_DIR / "ca" / "ca.toml", "[ca]\n", f"[ca]\nsvid_ttl_s = {_TTL_S}\n"):
        mesh.lab("restart", "ca")
        yield
    mesh.lab("restart", "ca")


def _lines(mesh: Mesh, words: str) -> list[dict[str, Any]]:
    return [line for line in mesh.log(1) if words in str(line.get("message", line))]


def test_an_outage_longer_than_the_certificates_is_told_before_it_hurts_and_heals_by_itself(mesh: Mesh) -> None:
    with _short_lives(mesh):
        client = mesh.pod("client", node=1, service_account="outage-client")
        server = mesh.pod("server", node=2, service_account="outage-server")
        server.serve_whoami(8080)
        server.serve_echo(8081)
        assert client.ask_whoami(server.ipv4, 8080)[0] == "server"
        assert warnings(mesh, 1) == []

        with client.connect(server.ipv4, 8081) as running, mesh.stopped("ca", how="kill"):
            told = wait_for("a warning", lambda: _about(mesh, str(client.identity)), deadline_s=2 * _TTL_S)
            assert "could not be renewed and ends in" in told
            assert "the CA at" in told
            # It is a warning: everything still works, and the probe says so.
            assert readyz(mesh, 1)[0] == 200
            assert mesh.metric(1, "ringfence_certificates_expiring") >= 1
            assert mesh.metric(1, "ringfence_ca_reachable") == 0
            assert told.partition(" ends in")[0] in str(mesh.ringfence(1, "status")["warnings"])
            assert "could not be renewed" in mesh.lab("ringfence", "1", "status")
            assert client.ask_whoami(server.ipv4, 8080)[0] == "server"

            wait_for("the end of the certificate", lambda: _is_unready(mesh, running), deadline_s=2 * _TTL_S)
            with client.connect(server.ipv4, 8080) as refused, pytest.raises(ConnectionResetError):
                refused.recv(1)
            record = mesh.record(1, direction="outbound", close_reason="identity_unavailable")
            assert "the CA at" in record["detail"]
            assert str(client.identity) in record["detail"]
            _is_unready(mesh, running)
            assert _lines(mesh, "could not be renewed and ends in")

        wait_for("readiness", lambda: readyz(mesh, 1)[0] == 200 and readyz(mesh, 2)[0] == 200, deadline_s=40)
        assert client.ask_whoami(server.ipv4, 8080)[0] == "server"
        wait_for("no warning", lambda: warnings(mesh, 1) == [])
        assert mesh.metric(1, "ringfence_certificates_expiring") == 0
    with client.connect(server.ipv4, 8080) as connection:
        assert read_all(connection).startswith(b"server ")


def _is_unready(mesh: Mesh, running: socket.socket) -> bool:
    """Whether the agent is; what was connected goes on all the while."""
    running.sendall(b"still there?")
    assert running.recv(12, socket.MSG_WAITALL) == b"still there?"
    return readyz(mesh, 1)[0] == 503


def _about(mesh: Mesh, identity: str) -> str | None:
    return next((text for text in warnings(mesh, 1) if identity in text), None)
