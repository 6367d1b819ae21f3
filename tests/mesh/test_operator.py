"""What an operator sees of a running mesh, and looks into: top, ended connections, log levels, profiles, the bundle."""

import json
import socket
import stat
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from tests.mesh_builder import STATE_DIR, WORKERS, LabCommandError, Mesh, Pod, read_all, wait_for
from tests.pty_screen import PtyScreen

pytestmark = pytest.mark.mesh

_HEADER_SECRET = "otlp-header-secret-0123456789"
_URL_SECRET = "database-password-0123456789"
_PROCESSES = ["agent", *(f"worker {number}" for number in range(1, int(WORKERS) + 1) if int(WORKERS) > 1)]


@contextmanager
def traffic(client: Pod, ip: str, port: int) -> Iterator[None]:
    """Short connections, one after the other, for the length of the block."""
    over = threading.Event()

    def talk() -> None:
        while not over.is_set():
            with client.connect(ip, port) as connection:
                connection.sendall(b"x" * 1000)
                connection.shutdown(socket.SHUT_WR)
                read_all(connection)

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture
def shop(mesh: Mesh) -> tuple[Pod, str]:
    """A client on node 1, and the address of a service whose pod is on node 2."""
    server = mesh.pod("web", node=2, namespace="shop", labels={"app": "web"})
    server.serve_echo(8080)
    address, _ = mesh.service("web", app="web", port=80, target_port=8080, namespace="shop")
    return mesh.pod("client", node=1, namespace="shop"), address


def top(mesh: Mesh, node: int, *arguments: str) -> Any:
    return mesh.ringfence(node, "top", "--once", "--interval", "0.5", *arguments)


def test_top_shows_rates_errors_and_latency_of_real_traffic(mesh: Mesh, shop: tuple[Pod, str]) -> None:
    client, address = shop
    with traffic(client, address, 80):
        found = wait_for("connections", lambda: (seen := top(mesh, 1))["connect_p99_s"] and seen)
        (out,) = (each for each in found["services"] if each["service"] == "shop/web")
        assert out["direction"] == "out"
        assert out["connections_per_s"] > 0
        assert out["to_bytes_per_s"] > 0 < out["back_bytes_per_s"]
        assert out["errors_by_reason_per_s"] == {}
        assert out["connect_ms"] > 0
        assert (out["usable"], out["endpoints"]) == (2, 2)  # of both IP families
        arrived = top(mesh, 2, "--direction", "in")["services"]  # others are of tests before
        assert any(each["connections_per_s"] > 0 for each in arrived)

        command = [sys.executable, "-m", "node_agent.cli.main", "top", "--interval", "0.5"]
        with PtyScreen([*command, "--agent", str(STATE_DIR / "agent-1" / "agent.sock")]) as screen:
            screen.until(lambda s: any(line.startswith("shop/web ") for line in s.lines) and "q: end" in s.lines[-1])
            screen.press("q")
            assert screen.wait() == 0

    mesh.pod("deaf", node=2, namespace="shop", labels={"app": "deaf"})
    deaf, _ = mesh.service("deaf", app="deaf", port=80, target_port=9, namespace="shop")
    over = threading.Event()

    def fail() -> None:
        while not over.is_set():
            try:
                with client.connect(deaf, 80) as connection:
                    connection.recv(1)
            except OSError:
                pass

    thread = threading.Thread(target=fail)
    thread.start()
    try:
        failing = wait_for(
            "errors of shop/deaf",
            lambda: [each for each in top(mesh, 1, "--service", "deaf")["services"] if each["errors_per_s"]],
        )
    finally:
        over.set()
        thread.join()
    assert set(failing[0]["errors_by_reason_per_s"]) == {"connect_refused"}

    ended = mesh.ringfence(1, "connections", "--reason", "connect_refused", "--service", "shop/deaf", "--limit", "2")
    assert [row["source_workload"] for row in ended] == ["shop/client"] * 2
    assert ended[0]["time"] >= ended[1]["time"]


def test_one_module_logs_more_for_a_while_in_every_process(mesh: Mesh, shop: tuple[Pod, str]) -> None:
    changed = mesh.ringfence(1, "log-level", "debug", "--module", "ringfence.connection")
    assert changed == {"level": "info", "modules": {"ringfence.connection": "debug"}}
    assert mesh.ringfence(1, "status")["log_levels"] == changed
    assert "ringfence.connection debug" in mesh.lab("ringfence", "1", "status")
    assert mesh.ringfence(1, "log-level", "error") == {"level": "error", "modules": {"ringfence.connection": "debug"}}
    assert mesh.ringfence(1, "log-level", "--reset") == {"level": "info", "modules": {}}
    with pytest.raises(LabCommandError, match="nothing logs as 'nonsense'; what does: ringfence, "):
        mesh.lab("ringfence", "1", "log-level", "debug", "--module", "nonsense")


def test_every_process_can_be_profiled_and_looked_into_while_it_carries(mesh: Mesh, shop: tuple[Pod, str]) -> None:
    client, address = shop
    with traffic(client, address, 80):
        profile = mesh.ringfence(1, "debug", "profile", "--seconds", "1.5")["processes"]
    assert [process["process"] for process in profile] == _PROCESSES
    carrier = profile[-1] if len(profile) == 1 else max(profile[1:], key=lambda each: sum(each["stacks"].values()))
    assert any("node_agent/" in stack for stack in carrier["stacks"])
    assert not any(process["running"] for process in profile)
    assert {process["pid"] for process in profile} == set(mesh.agent_pids(1))

    stacks = mesh.ringfence(1, "debug", "stacks")["processes"]
    assert [process["process"] for process in stacks] == _PROCESSES
    assert all(process["tasks"][0].startswith("<init>") for process in stacks)
    for row in mesh.ringfence(1, "debug", "memory")["processes"]:
        assert row["resident_bytes"] > 10_000_000
    speedscope = json.loads(
        mesh.lab("ringfence", "1", "debug", "profile", "--seconds", "0.2", "--format", "speedscope")
    )
    assert [each["name"] for each in speedscope["profiles"]] == _PROCESSES


def _secrets() -> list[bytes]:
    """All that is secret in this lab: passphrase, join tokens, a line of each private key, and what we have added."""
    found = [path.read_bytes().strip() for path in (STATE_DIR / "ca/passphrase", *STATE_DIR.glob("agent-*/join-token"))]
    for path in chain(STATE_DIR.rglob("*.pem"), STATE_DIR.rglob("*.key")):
        found += path.read_bytes().partition(b"PRIVATE KEY-----\n")[2].splitlines()[:1]
    assert len(found) >= 1 + 2 + 2 + 2
    return [*found, _HEADER_SECRET.encode(), _URL_SECRET.encode()]


@contextmanager
def traced(mesh: Mesh, tmp_path: Path) -> Iterator[None]:
    """Agent 1 sends spans to nobody, with a secret header."""
    path = STATE_DIR / "agent-1" / "agent.toml"
    before = path.read_text()
    headers = tmp_path / "headers"
    headers.write_text(f"Authorization: Bearer {_HEADER_SECRET}\n")
    headers.chmod(0o600)
    try:
        path.write_text(f'{before}\n[tracing]\nendpoint = "http://127.0.0.1:9"\nheaders_file = "{headers}"\n')
        mesh.lab("restart", "agent-1")
        yield
    finally:
        path.write_text(before)
        mesh.lab("restart", "agent-1")


def test_the_bundle_of_a_running_agent_has_everything_but_secrets(
    mesh: Mesh, shop: tuple[Pod, str], tmp_path: Path
) -> None:
    client, address = shop
    output = tmp_path / "bundle.tar.gz"
    with traced(mesh, tmp_path):
        with client.connect(address, 80) as connection:
            connection.sendall(b"x")
            assert connection.recv(1) == b"x"
            with (STATE_DIR / "agent-1" / "log").open("a") as log:
                log.write(f"somebody logs postgresql://ringfence:{_URL_SECRET}@db/ca\n")
            mesh.lab("ringfence", "1", "bundle", "-o", str(output))
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    with tarfile.open(output) as archive:
        parts = {
            member.name.partition("/")[2]: file.read()
            for member in archive.getmembers()
            if (file := archive.extractfile(member)) is not None
        }
    everything = b"\n".join(parts.values())
    for secret in _secrets():
        assert secret not in everything
    assert b"PRIVATE KEY" not in everything

    index = parts["index.txt"].decode()
    assert [line for line in index.splitlines()[2:] if not line.endswith(": ok") and "iptables" not in line] == []
    config = json.loads(parts["agent/config.json"])
    assert config["tracing"]["headers_file"] == str(tmp_path / "headers")
    assert config["agent"]["node"] == "node-1"
    assert [row["service"] for row in json.loads(parts["agent/connections.json"])] == ["shop/web:80"]
    assert b"ringfence" in parts["pods/shop_client/nft.txt"]
    assert b"istio_tcp_connections_opened_total" in parts["agent/metrics.txt"]
    assert b"somebody logs postgresql://(removed)@db/ca" in everything
    assert json.loads(parts["agent/certs.json"])[0]["state"] == "valid"
    assert parts["agent/debug/profile.collapsed"]
    for name in ("workloads", "services", "endpoints", "policies", "recent", "traffic", "log-level", "debug/stacks"):
        json.loads(parts[f"agent/{name}.json"])
