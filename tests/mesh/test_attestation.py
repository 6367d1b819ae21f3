"""An agent that has lost everything joins again, by its pod's token and by its machine's document: real processes."""

import queue
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest
import trio

from tests.instance_documents import ACCOUNT, Provider, document
from tests.kube_api_server import KubeApiServer, kube_api_server
from tests.mesh_builder import STATE_DIR, Mesh, in_namespace, wait_for
from tests.mesh_faults import readyz

pytestmark = pytest.mark.mesh

_CA: Final = STATE_DIR / "ca" / "ca.toml"
_AGENT: Final = STATE_DIR / "agent-1"


@contextmanager
def api_server_beside_the_ca(mesh: Mesh, directory: Path) -> Iterator[KubeApiServer]:
    """In a thread of its own, on loopback of the CA's machine."""

    def listen() -> socket.socket:
        made = socket.create_server(("127.0.0.1", 0))
        made.setblocking(False)
        return made

    made: queue.SimpleQueue[KubeApiServer] = queue.SimpleQueue()
    ended, token = trio.Event(), []

    async def serve() -> None:
        token.append(trio.lowlevel.current_trio_token())
        async with kube_api_server(directory, listening=in_namespace(mesh.node_netns(0), listen)) as kube:
            made.put(kube)
            await ended.wait()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    try:
        yield made.get(timeout=60)
    finally:
        token[0].run_sync_soon(ended.set)
        thread.join()


@contextmanager
def joining_anew(mesh: Mesh, *, ca: str, agent: str) -> Iterator[None]:
    """The CA with ``ca`` in its configuration; agent 1 stopped, without its certificate, and ``agent`` under [ca]."""
    agent_file, token_file = _AGENT / "agent.toml", _AGENT / "join-token"
    before = {path: path.read_text() for path in (_CA, agent_file)}
    mesh.lab("stop", "agent-1")
    try:
        _CA.write_text(before[_CA] + ca)
        mesh.lab("restart", "ca")
        agent_file.write_text(re.sub(r"join_token_file = .*\n", agent, before[agent_file]))
        _lose_the_certificate()
        yield
    finally:
        for path, text in before.items():
            path.write_text(text)
        mesh.lab("restart", "ca")
        token_file.write_text(mesh.lab("ringfence", "ca", "token", "--node", "node-1"))
        mesh.lab("stop", "agent-1")
        _lose_the_certificate()
        mesh.lab("start", "agent-1")


def _lose_the_certificate() -> None:
    (_AGENT / "node" / "node.pem").unlink(missing_ok=True)


def wait_for_reason(mesh: Mesh, says: str) -> None:
    def look() -> bool:
        try:
            code, reasons = readyz(mesh, 1)
        except OSError:
            return False  # it does not listen yet
        return code == 503 and any(says in reason for reason in reasons)

    wait_for(f"an agent that says: {says}", look)


def wait_until_ready(mesh: Mesh) -> None:
    wait_for("readiness", lambda: readyz(mesh, 1)[0] == 200)


def test_an_agent_joins_with_the_service_account_token_of_its_pod(mesh: Mesh, tmp_path: Path) -> None:
    client, server = mesh.pod("client", node=1), mesh.pod("server", node=2)
    server.serve_whoami(8080)
    token_file = tmp_path / "ringfence-ca"
    with api_server_beside_the_ca(mesh, tmp_path) as kube:
        ca = (
            f'\n[attestation]\nplugins = ["join_token", "kubernetes"]\n[attestation.kubernetes]\n'
            f'server = "https://127.0.0.1:{kube.port}"\nca_file = "{kube.ca_file}"\ntoken_file = "{kube.token_file}"\n'
            f'service_accounts = ["ringfence/ringfence-agent"]\n'
        )
        agent = f'attestation = "kubernetes"\nservice_account_token_file = "{token_file}"\n'
        with joining_anew(mesh, ca=ca, agent=agent):
            mesh.lab("start", "agent-1", "--no-wait")
            wait_for_reason(mesh, f"service_account_token_file: {token_file} can not be read")
            token = kube.token(kube.pod("agent-x", node="node-1"))
            token_file.write_bytes(token)
            wait_until_ready(mesh)
            assert client.ask_whoami(server.ipv4, 8080)[0] == "server"

            logs = mesh.lab("logs", "ca") + mesh.lab("logs", "agent-1")
            assert '"event": "attested", "plugin": "kubernetes", "node": "node-1"' in logs
            for secret in (token.decode(), kube.token_file.read_text().strip()):
                assert secret not in logs


def test_an_agent_joins_with_the_document_of_its_machine_once(mesh: Mesh, tmp_path: Path) -> None:
    provider, now = Provider(at=datetime.now(UTC)), datetime.now(UTC)
    (tmp_path / "machines.pem").write_bytes(provider.pem)
    (tmp_path / "document").write_bytes(document("node-1", at=now))
    (tmp_path / "signature").write_text(provider.signature_text(document("node-1", at=now)))
    ca = (
        f'\n[attestation]\nplugins = ["join_token", "instance_document"]\n[attestation.instance_document]\n'
        f'certificate_file = "{tmp_path}/machines.pem"\naccounts = ["{ACCOUNT}"]\nmax_age_s = 3600\n'
    )
    agent = (
        f'attestation = "instance_document"\ninstance_document_file = "{tmp_path}/document"\n'
        f'instance_signature_file = "{tmp_path}/signature"\n'
    )
    with joining_anew(mesh, ca=ca, agent=agent):
        mesh.lab("start", "agent-1")
        wait_until_ready(mesh)
        mesh.lab("stop", "agent-1")
        _lose_the_certificate()
        mesh.lab("start", "agent-1", "--no-wait")
        wait_for_reason(mesh, f"ringfence ca instances --forget {ACCOUNT}/node-1")
        mesh.lab("stop", "agent-1")
        mesh.lab("ringfence", "ca", "instances", "--forget", f"{ACCOUNT}/node-1")
        mesh.lab("start", "agent-1")
        wait_until_ready(mesh)
