"""Whatever way a program of a workload connects, it is captured, its destination is known, and nothing is left."""

import json
import sys
from typing import Final

import pytest

from tests import odd_connects
from tests.mesh_builder import ROOT, Mesh, wait_for

pytestmark = pytest.mark.mesh

_PORT: Final = 8080


def test_every_way_to_connect_is_captured_and_leaves_nothing(mesh: Mesh) -> None:
    client = mesh.pod("client", node=1, service_account="client")
    server = mesh.pod("server", node=2, service_account="server")
    server.serve_echo(_PORT)

    def left() -> dict[str, int]:
        maps = {each["name"]: each["entries"] for each in mesh.ringfence(1, "bpf", "status")["maps"]}
        return {name: maps[name] for name in ("flows", "originals")}

    program = str(ROOT / "tests/odd_connects.py")
    done = client.run(sys.executable, program, server.ipv4, server.ipv6, str(_PORT), timeout_s=300)

    ips = server.ipv4, server.ipv6
    expected: dict[str, object] = {f"{way} to {ip}": [ip, _PORT, "hello"] for way in odd_connects.WAYS for ip in ips}
    expected |= {f"storm to {ip}": odd_connects._CHILDREN for ip in ips}
    assert json.loads(done.stdout) == expected
    # The one way that connects twice resets its first connection; whether the agent has accepted it then nobody knows.
    number = len(ips) * (len(odd_connects.WAYS) + 1 + odd_connects._CHILDREN)
    wait_for("all recorded", lambda: len(mesh.records(1, direction="outbound")) >= number, deadline_s=60)
    records = mesh.records(1, direction="outbound")
    asked, nobody = ((f"{server.ipv4}:{port}", f"[{server.ipv6}]:{port}") for port in (_PORT, _PORT + 1))
    abandoned = [each for each in records if each["original_destination"] not in asked]
    for record in abandoned:
        assert record["original_destination"] in (None, *nobody)
        assert record["close_reason"] in ("downstream_reset", "connect_refused")
    assert len(abandoned) == len(ips)
    for destination in asked:
        whole = [each for each in records if each["original_destination"] == destination]
        assert len(whole) == (number - len(ips)) // len(ips)
    assert {each["source_identity"] for each in records} == {client.identity}
    wait_for("empty maps", lambda: not any(left().values()), deadline_s=60)
