"""Both ends of a connection in the test's hands, and every way between them through an agent.

    tunnel         enrolled -> agent 1 =mutual TLS= agent 2 -> enrolled
    to-outside     enrolled -> agent 1 -> not enrolled          (plaintext that leaves the mesh)
    from-outside   not enrolled -> agent 2 -> enrolled          (plaintext that enters it)

``Ground.assert_nothing_is_left`` counts the agents' descriptors: after a test
there may be idle tunnels, and nothing else that was not there before.
"""

import ctypes
import hashlib
import itertools
import os
import random
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.mesh_builder import DEADLINE_S, Mesh, Pod, wait_for

KINDS: Final = ("tunnel", "to-outside", "from-outside")
CHUNK_BYTES: Final = 1 << 20
_PIDFD_GETFD: Final = 438
_TCP_CLOSE: Final = 7
_libc: Final = ctypes.CDLL(None, use_errno=True)
_ports: Final = itertools.count(2001)  # below the ephemeral ones of the lab, and of the agent


class Way:
    """One way between two pods; connections made with it are closed after the test."""

    def __init__(self, ground: "Ground", kind: str, version: str) -> None:
        self.mesh = ground.mesh
        self.kind = kind
        self.client = ground.outside_client if kind == "from-outside" else ground.client
        self.server = ground.outside_server if kind == "to-outside" else ground.server
        self.ip: str = getattr(self.server, version)
        self.client_ip: str = getattr(self.client, version)
        self.recorders = {"tunnel": {1: "outbound", 2: "inbound"}, "to-outside": {1: "outbound"}}.get(
            kind, {2: "inbound"}
        )
        self._ground = ground

    def agent_pids(self, node: int) -> list[int]:
        return self._ground.agents[node]

    def listen(self, *, backlog: int = 512) -> tuple[socket.socket, int]:
        """Listen on a port that no test has used before, so that it names the connections of this one."""
        port = next(_ports)
        return self._ground.keep(self.server.listen(port, backlog=backlog)), port

    def connect(self, port: int, *, timeout_s: float = DEADLINE_S) -> socket.socket:
        return self._ground.keep(self.client.connect(self.ip, port, timeout_s=timeout_s))

    def open(self) -> "Ends":
        """Connect, and return the application's ends on both sides."""
        listener, port = self.listen()
        client = self.connect(port)
        server, _ = listener.accept()
        listener.close()
        server.settimeout(DEADLINE_S)
        return Ends(client, self._ground.keep(server), port)

    def records(self, port: int) -> list[dict[str, Any]]:
        """Wait for the one access record of each agent on the way about the connection to ``port``."""
        host = f"[{self.ip}]" if ":" in self.ip else self.ip
        return [
            self.mesh.record(node, direction=direction, original_destination=f"{host}:{port}")
            for node, direction in self.recorders.items()
        ]

    def assert_closed(self, port: int, reason: str, *, sent: int | None = None, received: int | None = None) -> None:
        """Every agent on the way wrote one record: why, and how much was sent back and received."""
        for record in self.records(port):
            assert record["close_reason"] == reason, record
            assert record["connection_security_policy"] == ("mutual_tls" if self.kind == "tunnel" else "none")
            if sent is not None:
                assert record["sent_bytes"] == sent, record
            if received is not None:
                assert record["received_bytes"] == received, record


class Ends(NamedTuple):
    """The two applications' sockets of one connection."""

    client: socket.socket
    server: socket.socket
    port: int


class Ground:
    """The pods, and what the agents hold."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.client = mesh.pod("client", node=1)
        self.server = mesh.pod("server", node=2)
        self.outside_client = mesh.pod("outside-client", node=1, mesh=False)
        self.outside_server = mesh.pod("outside-server", node=2, mesh=False)
        self.agents = {node: mesh.agent_pids(node) for node in (1, 2)}
        self._sockets: list[socket.socket] = []
        self._held_before = 0

    def way(self, kind: str, version: str) -> Way:
        return Way(self, kind, version)

    def pods(self) -> tuple[Pod, ...]:
        return (self.client, self.server, self.outside_client, self.outside_server)

    def keep(self, sock: socket.socket) -> socket.socket:
        """Close ``sock`` after the test."""
        self._sockets.append(sock)
        return sock

    def begin_test(self) -> None:
        self.mesh.begin_test()
        self._note_what_is_held()

    def _note_what_is_held(self) -> None:
        wait_for("quiet agents", self._held)
        self._held_before = min(held for _ in range(5) if (held := self._held()) is not None)

    def close_sockets(self) -> None:
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()

    def assert_nothing_is_left(self) -> None:
        """No open connection, no busy tunnel, no descriptor but those of idle tunnels (one at each end)."""
        wait_for(
            f"the agents to hold {self._held_before} descriptors again",
            lambda: (held := self._held()) is not None and held <= self._held_before,
        )

    def _held(self) -> int | None:
        """The descriptors of both agents without idle tunnels' and prepared sockets'; None while anything is in use."""
        samples = [self.mesh.metrics(node) for node in self.agents]
        if any(each["ringfence_connections_open"] or each["ringfence_tunnels_busy"] for each in samples):
            return None
        idle = int(sum(each["ringfence_tunnels_idle"] for each in samples))
        held = 0
        for pid in itertools.chain.from_iterable(self.agents.values()):
            held += len(os.listdir(f"/proc/{pid}/fd"))
            with sockets_of(pid) as sockets:
                held -= sum(tcp_state(each) == _TCP_CLOSE for each in sockets)
        return held - 2 * idle

    @contextmanager
    def killed(self, node: int) -> Iterator[None]:
        """The agent of ``node`` is dead within the block, and is another process after it."""
        with self.mesh.stopped(f"agent-{node}", how="kill"):
            yield
        self.close_sockets()
        self.agents[node] = self.mesh.agent_pids(node)
        wait_for("its pods to be served", lambda: self.mesh.ringfence(node, "status")["ready"])
        self._note_what_is_held()

    @contextmanager
    def costs_less_than(self, most_bytes: int) -> Iterator[None]:
        """The resident memory of no process of an agent grows by ``most_bytes`` at any time within the block.

        Not counted are pages of libraries, which an agent lets go of when it idles and that come back with its work.
        """
        before = {}
        for pid in itertools.chain.from_iterable(self.agents.values()):
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # proc(5): resets the peak
            before[pid] = memory_bytes(pid, "VmRSS"), memory_bytes(pid, "RssFile")
        yield
        grown = {
            pid: memory_bytes(pid, "VmHWM") - all_of_it - max(0, memory_bytes(pid, "RssFile") - of_files)
            for pid, (all_of_it, of_files) in before.items()
        }
        assert max(grown.values()) < most_bytes, f"grown by {grown} bytes"


@contextmanager
def sockets_of(pid: int) -> Iterator[list[socket.socket]]:
    """The TCP sockets of a process, as descriptors of our own (pidfd_getfd(2))."""
    found: list[socket.socket] = []
    pidfd = os.pidfd_open(pid)
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                if not os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
                    continue
            except FileNotFoundError:
                continue
            fd = _libc.syscall(_PIDFD_GETFD, pidfd, int(name), 0)
            if fd < 0:
                continue  # closed meanwhile
            sock = socket.socket(fileno=fd)
            if sock.type == socket.SOCK_STREAM and sock.family in (socket.AF_INET, socket.AF_INET6):
                found.append(sock)
            else:
                sock.close()
        yield found
    finally:
        os.close(pidfd)
        for sock in found:
            sock.close()


def tcp_state(sock: socket.socket) -> int:
    """The first byte of ``struct tcp_info``: 1 is ESTABLISHED, 7 CLOSE, 8 CLOSE_WAIT, 10 LISTEN."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def memory_bytes(pid: int, field: str) -> int:
    """``VmRSS``, ``VmHWM`` or ``RssFile`` of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {field} in the status of {pid}")


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def was_reset(sock: socket.socket) -> bool:
    """Read to the end: True if it was a reset, False if it was a clean end."""
    try:
        while sock.recv(CHUNK_BYTES):
            pass
    except ConnectionResetError:
        return True
    return False


def read_exactly(sock: socket.socket, size: int) -> bytes:
    """Read ``size`` bytes; fewer only if the stream ends."""
    parts = []
    while size and (more := sock.recv(min(size, CHUNK_BYTES))):
        parts.append(more)
        size -= len(more)
    return b"".join(parts)


class Bulk:
    """A stream of ``size`` bytes, a whole number of chunks, no chunk like another; made as it is sent."""

    def __init__(self, size: int, *, seed: int) -> None:
        self.size = size
        self._block = bytearray(random.Random(seed).randbytes(CHUNK_BYTES))
        self.sha256 = ""
        self.sent_bytes = 0

    def send(self, sock: socket.socket) -> None:
        """Send all of it, then shut the socket for writing; ``sha256`` is set then."""
        digest = hashlib.sha256()
        for number in range(self.size // CHUNK_BYTES):
            struct.pack_into(">Q", self._block, 0, number)
            digest.update(self._block)
            left = memoryview(self._block)
            while left:
                sent = sock.send(left)
                self.sent_bytes += sent
                left = left[sent:]
        sock.shutdown(socket.SHUT_WR)
        self.sha256 = digest.hexdigest()


def sha256_to_end(sock: socket.socket) -> str:
    """Read to a clean end and return the digest of what came."""
    digest = hashlib.sha256()
    buffer = bytearray(CHUNK_BYTES)
    view = memoryview(buffer)
    while size := sock.recv_into(buffer):
        digest.update(view[:size])
    return digest.hexdigest()
