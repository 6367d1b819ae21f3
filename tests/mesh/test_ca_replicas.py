"""A CA of two replicas on one PostgreSQL, in the lab: agents use both, and one that is killed is not missed."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ca.authority.config import AuthorityConfig
from ca.authority.store import Store
from tests.mesh_builder import STATE_DIR, Mesh, Pod, read_all, wait_for

pytestmark = pytest.mark.mesh

_REPLICAS = ("ca", "ca-replica-2")


@pytest.fixture(scope="module")
def replicated(session_mesh: Mesh) -> Iterator[Mesh]:
    """A lab whose CA has two replicas, for the tests of this file."""
    session_mesh.up("--ca-replicas", "2")
    yield session_mesh
    session_mesh.up()


@pytest.fixture
def mesh(replicated: Mesh) -> Iterator[Mesh]:
    """Both replicas run."""
    for name in _REPLICAS:
        replicated.lab("start", name, check=False)  # it may run already
    replicated.begin_test()
    yield replicated
    replicated.reset()


def issued_by(replica: str) -> list[int]:
    """The serials that a replica has issued to nodes, by its log."""
    text = (STATE_DIR / replica / "log").read_text()
    # The shell that waits for it says "Killed" in between.
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]
    return [int(line["serial"], 16) for line in lines if line["event"] == "issued" and line["node"]]


def journal() -> list[int]:
    store = Store.open(AuthorityConfig.load(STATE_DIR / "ca" / "ca.toml").database)
    try:
        return [each.serial for each in store.certificates()]
    finally:
        store.close()


def held_by(mesh: Mesh, node: int) -> dict[str, int]:
    """Identity to serial of every certificate that an agent has."""
    rows: list[dict[str, Any]] = mesh.ringfence(node, "certs")
    return {row["identity"]: int(row["serial"], 16) for row in rows if row.get("serial")}


def pid_of(mesh: Mesh, replica: str) -> int:
    found = json.loads(mesh.lab("status", "--json"))
    rows = {row["name"]: row["pid"] for row in (found["ca"], *found["ca_replicas"])}
    pid = rows[replica]
    assert isinstance(pid, int)
    return pid


def echo(client: Pod, server: Pod) -> None:
    with client.connect(server.ipv4, 8080) as connection:
        connection.sendall(b"hello")
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == b"hello"


def test_agents_use_both_replicas_and_go_on_with_one_when_the_other_is_killed_while_issuing(mesh: Mesh) -> None:
    pods: list[Pod] = []
    before = {replica: len(issued_by(replica)) for replica in _REPLICAS}
    # Each request draws a replica: forty that all draw the same one are one in 2**39.
    while any(len(issued_by(replica)) == before[replica] for replica in _REPLICAS):
        assert len(pods) < 40, before
        pods.append(mesh.pod(f"w{len(pods)}", node=1 + len(pods) % 2, service_account=f"w{len(pods)}"))

    killed = pid_of(mesh, "ca")
    names = [f"m{number}" for number in range(4)]
    node_of = {name: 1 + number % 2 for number, name in enumerate(names)}

    def add(name: str) -> None:
        mesh.lab("pod", name, "--node", str(node_of[name]), "--service-account", name, "--no-wait")

    try:
        with ThreadPoolExecutor(len(names)) as pool:
            adding = [pool.submit(add, name) for name in names]
            wait_for("one of them to be there", lambda: any(each.done() for each in adding))
            os.kill(killed, signal.SIGKILL)
            for each in adding:
                each.result()
        for name in names:
            identity = f"spiffe://cluster.local/ns/default/sa/{name}"
            wait_for(f"{name} to have its certificate", lambda: identity in held_by(mesh, node_of[name]))  # noqa: B023
    finally:
        mesh.lab("delete", *[f"Pod/default/{name}" for name in names])

    server = mesh.pod("server", node=2, service_account="server")
    server.serve_echo(8080)
    echo(mesh.pod("client", node=1, service_account="client"), server)

    recorded = journal()
    assert len(recorded) == len(set(recorded))
    held = {*held_by(mesh, 1).values(), *held_by(mesh, 2).values()}
    assert held <= set(recorded)
    assert {*issued_by("ca"), *issued_by("ca-replica-2")} <= set(recorded)


def test_a_replica_that_was_killed_comes_back_and_issues_again(mesh: Mesh) -> None:
    mesh.lab("kill", "ca-replica-2")
    mesh.pod("a", node=1, service_account="a")
    mesh.lab("start", "ca-replica-2")
    before = len(issued_by("ca-replica-2"))
    mesh.lab("stop", "ca")
    mesh.pod("b", node=1, service_account="b")
    assert len(issued_by("ca-replica-2")) > before
