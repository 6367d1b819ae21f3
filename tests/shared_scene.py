"""A client of an agent, and a destination that is the test: the scene of an agent as the source of shared tunnels.

The destination is a pod that no agent serves; its manifest says that it is
enrolled, so agent 1 dials it, and what answers on 15008 is the test.
"""

import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from tests.certificates import Signer
from tests.mesh_builder import Mesh, Pod, read_all, wait_for
from tests.mesh_stage import PORT
from tests.shared_peer import BOTH, SharedDestination, SharedTunnel, shared_context
from tests.shared_stream import Stream

_FIRST_SOURCE_PORT: Final = 2_000  # far below those that the kernel chooses
_STORE: Final = "spiffe://cluster.local/ns/default/sa/store"


def claim(name: str) -> str:
    """The manifest that says that pod ``name`` is enrolled, as a workload of ``store``."""
    return (
        f"apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default, "
        "labels: {ringfence.io/mesh: enabled, app: store}}\n"
        "spec: {nodeName: node-9, serviceAccountName: store}\n"
    )


@dataclass
class Scene:
    """The client, and the destination that the test is."""

    mesh: Mesh
    client: Pod
    destination: SharedDestination
    ip: str
    signer: Signer
    port: int = PORT
    """Another one in each test: an agent remembers which ports see bulk, and does not share for those."""
    _source_ports: Iterator[int] = field(default_factory=lambda: itertools.count(_FIRST_SOURCE_PORT))
    _threads: list[threading.Thread] = field(default_factory=list)
    _sockets: ExitStack = field(default_factory=ExitStack)

    def begin_test(self) -> None:
        self.mesh.begin_test()
        self.port += 1
        self.select(BOTH)

    def end_test(self) -> None:
        self._sockets.close()
        self.destination.forget()
        self.join()

    def select(self, alpn: tuple[str, ...]) -> None:
        """What the destination knows, by its own order."""
        leaf = self.signer.leaf(_STORE)
        self.destination.context = shared_context(leaf, self.signer.signers[-1], server_side=True, alpn=alpn)

    @contextmanager
    def another_destination(self, name: str, alpn: tuple[str, ...]) -> Iterator[tuple[SharedDestination, str]]:
        """A destination like the first, for one test."""
        pod = self.mesh.pod(name, node=2, mesh=False)
        destination = SharedDestination(pod)
        leaf = self.signer.leaf(_STORE)
        destination.context = shared_context(leaf, self.signer.signers[-1], server_side=True, alpn=alpn)
        try:
            self.mesh.apply(claim(name))
            yield destination, pod.ipv4
        finally:
            destination.close()

    def shows(self, sample: str, value: float) -> None:
        """Wait until the agent of the client has this figure."""
        wait_for(f"{sample} to be {value}", lambda: self.mesh.metrics(1)[sample] == value or None)

    def connect(self, ip: str | None = None) -> socket.socket:
        """A connection of a program of the client.

        From a port that no other has had: one that conntrack still knows as redirected it would give another port.
        """
        connection = self.client.connect(ip or self.ip, self.port, source_port=next(self._source_ports))
        return self._sockets.enter_context(connection)

    def sends(self, connection: socket.socket, data: bytes) -> None:
        """The program sends ``data`` and its end, in its own time."""

        def send() -> None:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # reset, as some tests want it; others see that bytes are missing

        self._start(send)

    def accepted_all(self, tunnel: SharedTunnel, connections: list[socket.socket]) -> list[Stream]:
        """The streams of connections, accepted in whichever order their OPENs come."""
        by_port: dict[int, Stream] = {}
        for _ in connections:
            stream = tunnel.accept()
            assert stream.asked is not None
            stream.answer()
            by_port[stream.asked["src"][1]] = stream
        return [by_port[connection.getsockname()[1]] for connection in connections]

    def accepted(self, tunnel: SharedTunnel, connection: socket.socket) -> Stream:
        """The stream of a connection, accepted."""
        stream = tunnel.accept()
        assert stream.asked is not None
        assert stream.asked["dst"] == [self.ip, self.port]
        assert stream.asked["src"] == list(connection.getsockname())
        assert "check" not in stream.asked
        stream.answer()
        return stream

    def reads(self, connection: socket.socket) -> list[bytes]:
        """The program reads to the end, in its own time; what it read is there after ``join``."""
        heard: list[bytes] = []

        def read() -> None:
            try:
                heard.append(read_all(connection))
            except OSError:
                pass  # reset: then nothing is there

        self._start(read)
        return heard

    def join(self) -> None:
        """Wait for the programs that do something in their own time."""
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work)
        thread.start()
        self._threads.append(thread)

    def record(self, connection: socket.socket) -> dict[str, Any]:
        ip, port = connection.getsockname()
        return self.mesh.record(1, direction="outbound", source_address=f"{ip}:{port}")

    def ended(self, connection: socket.socket, reason: str, sent: int, received: int) -> None:
        """Assert why a connection ended; ``sent`` is the response's, ``received`` the request's."""
        record = self.record(connection)
        assert (record["close_reason"], record["sent_bytes"], record["received_bytes"]) == (reason, sent, received)
        assert record["destination_identity"] == _STORE
        assert record["connection_security_policy"] == "mutual_tls"


def is_reset(connection: socket.socket) -> bool:
    """Whether the program sees a RST, and no end."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        return True
    return False
