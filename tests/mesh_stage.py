"""An enrolled server, an enrolled client and an attacker: the stage for tests of what an agent refuses.

stage.refused(by, CloseReason)    the application saw nothing, one record says why, the next good client is served
"""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from tests.certificates import Leaf, Signer
from tests.lab_authority import lab_signer
from tests.mesh_builder import Mesh, Pod, read_all, wait_for

PORT: Final = 8080
HANDSHAKE_TIMEOUT_S: Final = 2.0
OPEN_TIMEOUT_S: Final = 1.0
CONNECT_TIMEOUT_S: Final = 1.0
CANARY: Final = b"the payload that nobody else may have " * 8


@dataclass
class Application:
    """An echo server that remembers who came, what it heard and how each connection ended."""

    pod: Pod
    accepted: list[str] = field(default_factory=list)
    heard: bytearray = field(default_factory=bytearray)
    endings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pod.serve(PORT, self._serve)

    def _serve(self, connection: socket.socket, peer: str) -> None:
        self.accepted.append(peer)
        try:
            while data := connection.recv(65536):
                self.heard += data
                connection.sendall(data)
        except OSError as error:
            self.endings.append(type(error).__name__)
            return
        self.endings.append("EOF")

    def forget(self) -> None:
        self.accepted.clear()
        self.heard.clear()
        self.endings.clear()


@dataclass
class Stage:
    """Server on node 2, client and attacker on node 1; ``signer`` is the lab's own CA."""

    mesh: Mesh
    server: Pod
    application: Application
    client: Pod
    attacker: Pod
    signer: Signer

    @property
    def root(self) -> Any:
        return self.signer.signers[-1]

    def leaf(self, account: str = "cart") -> Leaf:
        """What the CA would give to a workload of this service account."""
        return self.signer.leaf(f"spiffe://{self.signer.trust_domain}/ns/default/sa/{account}")

    def begin_test(self) -> None:
        self.mesh.begin_test()
        self.application.forget()

    def good_connection(self) -> None:
        """The enrolled client reaches the application through a tunnel."""
        with self.client.connect(self.server.ipv4, PORT) as connection:
            connection.sendall(b"good")
            connection.shutdown(socket.SHUT_WR)
            assert read_all(connection) == b"good"

    def records(self, count: int) -> list[dict[str, Any]]:
        """Wait for so many inbound records of the server's agent besides the enrolled client's."""

        def others() -> list[dict[str, Any]]:
            return [each for each in self.mesh.records(2) if each["source_workload"] != self.client.workload]

        return wait_for(f"{count} records", lambda: found if len(found := others()) >= count else None)

    def refused(self, reason: str, *, flags: str = "TLS_FAILURE", detail: str = "") -> dict[str, Any]:
        """Assert that exactly one connection was refused, for ``reason``; that nobody noticed; returns its record."""
        self.records(1)
        self.good_connection()
        good = self.mesh.record(2, source_workload=self.client.workload)
        assert good["close_reason"] == "ok"
        (record,) = self.records(1)
        assert record["close_reason"] == reason, record
        assert detail in record["detail"], record
        assert record["response_flags"] == flags
        assert record["direction"] == "inbound"
        assert record["source_address"].startswith((f"{self.attacker.ipv4}:", f"[{self.attacker.ipv6}]:"))
        assert record["source_workload"] is None
        assert record["destination_workload"] == self.server.workload
        assert record["destination_identity"] == self.server.identity
        assert record["connection_security_policy"] == "mutual_tls", record
        assert record["sent_bytes"] == record["received_bytes"] == 0
        assert self.application.accepted == [self.client.ipv4], "only the good one"
        assert bytes(self.application.heard) == b"good"
        return record


@contextmanager
def unhurried(mesh: Mesh) -> Iterator[Stage]:
    """Set the stage, with the agents as they are: for tests that wait for no deadline."""
    mesh.begin_test()
    try:
        server = mesh.pod("store", node=2, service_account="store", labels={"app": "store"})
        yield Stage(
            mesh=mesh,
            server=server,
            application=Application(server),
            client=mesh.pod("cart", node=1, service_account="cart"),
            attacker=mesh.pod("attacker", node=1, mesh=False),
            signer=lab_signer(),
        )
    finally:
        mesh.reset()


@contextmanager
def staged(mesh: Mesh, *, handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S) -> Iterator[Stage]:
    """Set the stage, with deadlines short enough to wait for."""
    with mesh.configured(
        handshake_timeout_s=handshake_timeout_s, open_timeout_s=OPEN_TIMEOUT_S, connect_timeout_s=CONNECT_TIMEOUT_S
    ):
        with unhurried(mesh) as stage:
            yield stage


def in_background(work: Any) -> threading.Thread:
    """Run ``work`` in a thread; the caller joins it."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread
