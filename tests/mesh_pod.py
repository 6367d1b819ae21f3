"""A pod of the lab, its programs, and sockets inside it."""

import socket
import subprocess
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bpf.preconditions import cgroup_root
from tests.cgroup_sockets import in_cgroup
from tests.mesh_lab import DEADLINE_S, ENVIRONMENT, LAB, LAB_NAME, in_namespace, read_all, wait_for

if TYPE_CHECKING:
    from tests.mesh_builder import Mesh

T = TypeVar("T")


class Pod:
    """A pod of the lab, and sockets inside it.  Sockets belong to the test."""

    def __init__(self, mesh: "Mesh", described: Mapping[str, Any]) -> None:
        self._mesh = mesh
        self.name: str = described["name"]
        self.namespace: str = described["namespace"]
        self.node: int = described["node"]
        self.ipv4: str = described["ipv4"]
        self.ipv6: str = described["ipv6"]
        self.identity: str | None = described["identity"]
        self.workload = f"{self.namespace}/{self.name}"
        self.netns = Path(f"/run/netns/rf_{LAB_NAME}-pod-{self.namespace}-{self.name}")
        self.cgroup: Path | None = None
        if mesh.capture == "cgroup":
            self.cgroup = cgroup_root() / f"rf_{LAB_NAME}" / f"node-{self.node}" / f"{self.namespace}_{self.name}"
            self.netns = mesh.node_netns(self.node)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._stop: list[Callable[[], None]] = []

    def inside(self, make: Callable[[], T]) -> T:
        """Run ``make`` inside the pod, and return its result."""
        if self.cgroup is not None:
            return in_cgroup(self.cgroup, self.netns, make)
        return in_namespace(self.netns, make)

    def connect(self, ip: str, port: int, *, timeout_s: float = DEADLINE_S, source_port: int = 0) -> socket.socket:
        """Connect from inside the pod; the socket is blocking with a timeout."""
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET

        def make() -> socket.socket:
            made = socket.socket(family, socket.SOCK_STREAM)
            try:
                made.settimeout(timeout_s)
                if self.cgroup is not None:
                    own = f"::ffff:{self.ipv4}" if ip.startswith("::ffff:") else self.ipv6 if ":" in ip else self.ipv4
                    made.bind((own, source_port))  # of the node's many
                elif source_port:
                    made.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", source_port))
                made.connect((ip, port))
            except BaseException:
                made.close()
                raise
            return made

        return self.inside(make)

    def listen(self, port: int, *, backlog: int = 512) -> socket.socket:
        """Listen inside the pod, IPv4 and IPv6, with a timeout on ``accept``."""

        def make() -> socket.socket:
            made = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=backlog)
            made.settimeout(DEADLINE_S)
            return made

        return self.inside(make)

    def _listen_at(self, ip: str, port: int, backlog: int) -> socket.socket:
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        return self.inside(lambda: socket.create_server((ip, port), family=family, backlog=backlog))

    def serve(self, port: int, handle: Callable[[socket.socket, str], None], *, backlog: int = 512) -> None:
        """Accept on ``port`` until the pod is deleted; ``handle(connection, peer_ip)`` runs in a thread each.

        The handler's OSErrors are the client's doing; the connection is closed after it.
        """
        # On a node that has the addresses of many, each listens on its own ones.
        listeners = (
            [self.listen(port, backlog=backlog)]
            if self.cgroup is None
            else [self._listen_at(ip, port, backlog) for ip in (self.ipv4, self.ipv6)]
        )

        def one(connection: socket.socket, peer: str) -> None:
            with connection:
                connection.settimeout(DEADLINE_S)
                try:
                    handle(connection, peer)
                except OSError:
                    pass

        def accept(listener: socket.socket) -> None:
            while True:
                try:
                    connection, address = listener.accept()
                except TimeoutError:
                    continue
                except OSError:
                    return
                peer = address[0].removeprefix("::ffff:")
                threading.Thread(target=one, args=(connection, peer), daemon=True).start()

        def stop(listener: socket.socket) -> None:
            try:
                listener.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            listener.close()

        for each in listeners:
            each.settimeout(0.5)  # a thread in accept keeps the socket, and so the namespace, for so long
            threading.Thread(target=accept, args=(each,), daemon=True).start()
            self._stop.append(partial(stop, each))

    def serve_echo(self, port: int) -> None:
        """Send back what comes, until EOF."""

        def echo(connection: socket.socket, _peer: str) -> None:
            while data := connection.recv(65536):
                connection.sendall(data)

        self.serve(port, echo)

    def serve_whoami(self, port: int) -> None:
        """Speak first: ``<pod name> <peer ip>\\n``, then close."""
        name = self.name.encode()
        self.serve(port, lambda connection, peer: connection.sendall(name + b" " + peer.encode() + b"\n"))

    def ask_whoami(self, ip: str, port: int) -> list[str]:
        """Connect to ``serve_whoami`` and return the two words."""
        with self.connect(ip, port) as connection:
            return read_all(connection).decode().split()

    def run(
        self, *command: str, check: bool = True, timeout_s: float = 180.0, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program in the pod by ``scripts/lab exec`` and wait for it."""
        done = subprocess.run(
            [LAB, "exec", self.workload, "--", *command],
            input=stdin,
            capture_output=True,
            timeout=timeout_s,
            env=ENVIRONMENT,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(
                f"{' '.join(command)} in {self.workload} ended with {done.returncode}:\n"
                f"{done.stdout.decode(errors='replace')}{done.stderr.decode(errors='replace')}"
            )
        return done

    def spawn(self, *command: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a program in the pod; it is killed when the pod is deleted."""
        options.setdefault("stdin", subprocess.DEVNULL)
        options.setdefault("stdout", subprocess.DEVNULL)
        options.setdefault("stderr", subprocess.DEVNULL)
        started = subprocess.Popen([LAB, "exec", self.workload, "--", *command], env=ENVIRONMENT, **options)
        self._processes.append(started)
        return started

    def wait_until_open(self, port: int, *, deadline_s: float = DEADLINE_S) -> None:
        """Wait until a program in the pod listens on ``port``."""

        def look() -> bool:
            try:
                self.inside(lambda: socket.create_connection(("127.0.0.1", port), 1).close())
            except OSError:
                return False
            return True

        wait_for(f"port {port} in {self.workload}", look, deadline_s=deadline_s)

    def delete(self) -> None:
        """Delete the pod as ``scripts/lab delete`` does."""
        self._mesh.delete_pod(self)

    def close(self) -> None:
        """Stop what the test started in it."""
        for stop in self._stop:
            stop()
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        self._stop.clear()
        self._processes.clear()
