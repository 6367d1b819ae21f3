"""Pods that are captured by BPF: nothing of netfilter, nothing left behind, and no start without programs."""

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bpf import pins as pinned
from bpf.loader import load
from bpf.pins import Pins
from bpf.plan import CAPTURE, FEATURES, INPOD, SOURCE
from bpf.unloader import unload
from node_agent.capture import choose
from tests.forged import next_syn_source, send_syn, without_the_labs_own_rule
from tests.mesh_builder import LAB_NAME, ROOT, STATE_DIR, Mesh, Pod, wait_for

pytestmark = pytest.mark.mesh

_CONNECTIONS = 200


def _status(node: int) -> dict[str, Any]:
    """What is loaded for a node, as ``ringfence bpf status`` tells."""
    command = [f"{ROOT}/.venv/bin/ringfence", "bpf", "status", "--json", "--pins", _pins(node)]
    shown: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return shown


def _pins(node: int) -> str:
    config = (STATE_DIR / f"agent-{node}" / "agent.toml").read_text()
    return next(line for line in config.splitlines() if line.startswith("pins = ")).split('"')[1]


def _entries(node: int) -> dict[str, int]:
    return {each["name"]: each["entries"] for each in _status(node)["maps"]}


def _in_netns(pod: Pod, *command: str) -> str:
    done = subprocess.run(
        ["nsenter", f"--net={pod.netns}", *command], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout


@pytest.mark.parametrize("version", ["ipv4", "ipv6"])
def test_a_pod_has_no_rules_and_tracks_no_connection(mesh: Mesh, version: str) -> None:
    client = mesh.pod("client", node=1)
    server = mesh.pod("server", node=2)
    server.serve_echo(8080)
    with client.connect(getattr(server, version), 8080) as connection:
        connection.sendall(b"a")
        assert connection.recv(1) == b"a"
        for pod in (client, server):
            assert _in_netns(pod, "nft", "list", "ruleset") == ""
            assert _in_netns(pod, "conntrack", "-C").strip() == "0"
    (record,) = wait_for("its record", lambda: mesh.records(2, direction="inbound"))
    assert record["connection_security_policy"] == "mutual_tls"
    assert record["source_workload"] == "default/client"


@pytest.mark.parametrize("version", ["ipv4", "ipv6"])
def test_a_pod_reaches_itself_without_the_agent_and_through_its_service_with_it(mesh: Mesh, version: str) -> None:
    pod = mesh.pod("web", node=1, labels={"app": "web"})
    pod.serve_whoami(8080)
    service = dict(zip(("ipv4", "ipv6"), mesh.service("web", app="web", port=80, target_port=8080), strict=True))
    assert pod.ask_whoami(getattr(pod, version), 8080)[0] == "web"
    assert pod.ask_whoami("127.0.0.1" if version == "ipv4" else "::1", 8080)[0] == "web"
    assert mesh.records(1) == []
    assert pod.ask_whoami(service[version], 80)[0] == "web"
    wait_for("the records of both ends", lambda: len(mesh.records(1)) == 2)


def test_nothing_is_left_of_connections_and_pods_that_are_over(mesh: Mesh) -> None:
    client = mesh.pod("client", node=1)
    server = mesh.pod("server", node=2)
    server.serve_whoami(8080)

    def left() -> list[int]:
        return [_entries(node)[name] for node in (1, 2) for name in ("flows", "originals", "passes")]

    wait_for("the connections of earlier tests to be forgotten", lambda: not any(left()))
    before = {node: _entries(node) for node in (1, 2)}
    for number in range(_CONNECTIONS):
        if number % 10 == 0:  # nobody listens there
            with pytest.raises(ConnectionResetError), client.connect(server.ipv4, 8081) as refused:
                assert refused.recv(1) == b""
        assert client.ask_whoami(server.ipv4 if number % 2 else server.ipv6, 8080)[0] == "server"
    wait_for("the maps to be as before", lambda: {node: _entries(node) for node in (1, 2)} == before)
    netns = {each["workload"] for each in _status(2)["links"] if each["workload"].startswith("netns-")}
    server.delete()

    # The next pod that comes or goes lets the agent look.
    mesh.pod("another", node=2)
    wait_for("its link to go", lambda: not netns & {each["workload"] for each in _status(2)["links"]})


def test_no_pod_of_the_node_sends_with_the_address_of_another_in_the_mesh_or_not(mesh: Mesh) -> None:
    server, client = mesh.pod("server", node=1), mesh.pod("client", node=1)
    senders = [mesh.pod("stranger", node=1), mesh.pod("outsider", node=1, mesh=False)]
    # The lab does not wait for the agent to have seen a pod that is not in the mesh.
    wait_for("all four to be guarded", lambda: _entries(1)["pod_addresses"] == 8, deadline_s=60)
    with without_the_labs_own_rule():
        for sender in senders:
            for own, forged, target in (
                (sender.ipv4, (client.ipv4, server.ipv4), server.ipv4),
                (sender.ipv6, (client.ipv6, server.ipv6), server.ipv6),
            ):
                with server.inside(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))) as seen:
                    seen.settimeout(60)
                    for source in (*forged, own):  # the last one shows that what came before would have been seen
                        send_syn(sender, source, target, 8080)
                    assert next_syn_source(seen, target, 8080) == own
    veths = {each["workload"] for each in _status(1)["links"] if each["hook"] == "pod_source"}
    assert len(veths) == 4
    for pod in senders:
        pod.delete()

    def is_tidy() -> bool:
        with mesh.applied("apiVersion: v1\nkind: Namespace\nmetadata: {name: looked-again}\n"):  # the agent looks
            left = {each["workload"] for each in _status(1)["links"] if each["hook"] == "pod_source"}
            return left < veths and len(left) == 2 and _entries(1)["pod_addresses"] == 4

    wait_for("the veths and addresses of two to be forgotten", is_tidy, deadline_s=60)


@pytest.fixture
def older_kernel() -> Iterator[Path]:
    """What a kernel before 6.6 has: pods are captured, forged addresses are not seen."""
    root = Path(f"/sys/fs/bpf/rf_{LAB_NAME}_older")
    for each in (Pins(root).staging, Pins(root).unloading, root):
        pinned.remove_tree(each)
    load(root, features=[each for each in FEATURES if each.name in (CAPTURE, INPOD, SOURCE)], kernel=(6, 5))
    yield root
    unload(root, force=True)


def test_where_forged_addresses_can_not_be_seen_the_agent_and_the_status_say_so(older_kernel: Path) -> None:
    with ExitStack() as stack:
        chosen = choose("inpod-bpf", pins=older_kernel, netns_path=lambda _: Path("/nowhere"), stack=stack)
        assert chosen.mode == "inpod-bpf"
        assert chosen.lane is None
        assert chosen.warning is not None
        assert chosen.warning.startswith("pods of this node can send with each other's addresses")
        assert "the feature source is off here" in chosen.warning
    command = [f"{ROOT}/.venv/bin/ringfence", "bpf", "status", "--pins", str(older_kernel)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "needs Linux 6.6 (TCX links, against forged addresses), this is 6.5" in shown


def test_an_agent_without_programs_does_not_start_and_says_what_to_do(mesh: Mesh, tmp_path: Path) -> None:
    config = tmp_path / "agent.toml"
    text = (STATE_DIR / "agent-1" / "agent.toml").read_text()
    config.write_text(text.replace(_pins(1), "/sys/fs/bpf/ringfence_not_there"))
    done = subprocess.run(
        [ROOT / ".venv/bin/ringfence", "agent", "--config", config],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 1
    assert "nothing is loaded; run `ringfence bpf load` before the agent" in done.stderr
