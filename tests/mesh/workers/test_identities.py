"""Certificates reach every worker: renewed ones are used."""

import time
from typing import Any, Final

import pytest

from tests.mesh_builder import STATE_DIR, Mesh, Pod
from tests.mesh_faults import edited

pytestmark = pytest.mark.mesh

_TTL_S: Final = 10


def _serial(mesh: Mesh, pod: Pod) -> str:
    rows: list[dict[str, Any]] = mesh.ringfence(pod.node, "certs")
    return next(str(row["serial"]) for row in rows if row["identity"] == pod.identity and row["serial"])


def test_every_worker_goes_on_with_the_renewed_certificate(mesh: Mesh) -> None:
    with edited(STATE_DIR / "ca" / "ca.toml", "[ca]\n", f"[ca]\nsvid_ttl_s = {_TTL_S}\n"):
        mesh.lab("restart", "ca")
        try:
            client = mesh.pod("client", node=1, service_account="renewed-client")
            server = mesh.pod("server", node=2, service_account="renewed-server")
            server.serve_whoami(8080)
            first = {pod.name: _serial(mesh, pod) for pod in (client, server)}
            ends_at = time.monotonic() + 1.5 * _TTL_S  # whoever had the first certificate would refuse by then
            answers = 0
            while time.monotonic() < ends_at:
                assert client.ask_whoami(server.ipv4, 8080) == ["server", client.ipv4]
                answers += 1
            assert answers > 20
            assert {pod.name: _serial(mesh, pod) for pod in (client, server)}.items().isdisjoint(first.items())
        finally:
            mesh.reset()
    mesh.lab("restart", "ca")
    records = mesh.records(1, direction="outbound")
    assert len({record["id"].rpartition("-")[0] for record in records}) == 2, "both workers carried"
    assert {record["close_reason"] for record in records} == {"ok"}
