"""Build a mesh for a test: pods, services, programs, faults, and what the agents say of it.

    web = mesh.pod("web", node=2, labels={"app": "web"})
    web.serve_echo(8080)
    client = mesh.pod("client", node=1)
    with client.connect(web.ipv4, 8080) as connection:
        ...
    record = mesh.record(1, source_workload="default/client")

Everything goes through ``scripts/lab``, as a user would do it; only sockets are
made by the test's own process, inside the pod's network namespace, because a
test of half-closes and resets must hold the socket in its hands.

One lab serves a whole pytest session.  It has a name of its own
(``RINGFENCE_TEST_LAB``, default ``test``), so a lab that somebody is looking at
is left alone, and it starts by removing what a killed session left.
"""

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from bpf.preconditions import cgroup_root
from tests.cgroup_sockets import in_cgroup
from tests.namespaces import enter_namespace

T = TypeVar("T")

ROOT: Final = Path(__file__).resolve().parents[1]
LAB_NAME: Final = os.environ.get("RINGFENCE_TEST_LAB", "test")
WORKERS: Final = os.environ.get("RINGFENCE_TEST_WORKERS", "1")  # of each agent: any mesh test may be run with more
CAPTURE: Final = os.environ.get("RINGFENCE_TEST_CAPTURE", "inpod")  # any mesh test may be run with another
STATE_DIR: Final = Path(f"/run/ringfence-lab-{LAB_NAME}")
_LAB: Final = str(ROOT / "scripts" / "lab")
_ENVIRONMENT: Final = {**os.environ, "RINGFENCE_LAB": LAB_NAME}

DEADLINE_S: Final = 60.0
"""How long a test waits for a thing that takes milliseconds on an idle machine."""


class LabCommandError(AssertionError):
    """A lab command failed; the text is what it printed."""


def wait_for(what: str, look: Callable[[], T | None], *, deadline_s: float = DEADLINE_S) -> T:
    """Return what ``look`` finds as soon as it is true (not None, not empty); fails after ``deadline_s``."""
    limit = time.monotonic() + deadline_s
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > limit:
            raise AssertionError(f"waited {deadline_s:g} s for {what}")
        time.sleep(0.01)


def in_namespace(path: Path, make: Callable[[], T]) -> T:
    """Run ``make`` inside a network namespace, in a thread of its own, and return its result."""
    result: list[T] = []
    failure: list[BaseException] = []

    def enter() -> None:
        try:
            enter_namespace(path)
            result.append(make())
        except BaseException as error:  # carried to the caller's thread
            failure.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


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
                if self.cgroup is not None and not source_port:
                    own = f"::ffff:{self.ipv4}" if ip.startswith("::ffff:") else self.ipv6 if ":" in ip else self.ipv4
                    made.bind((own, 0))  # of the node's many
                if source_port:
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
            [_LAB, "exec", self.workload, "--", *command],
            input=stdin,
            capture_output=True,
            timeout=timeout_s,
            env=_ENVIRONMENT,
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
        started = subprocess.Popen([_LAB, "exec", self.workload, "--", *command], env=_ENVIRONMENT, **options)
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


def read_all(connection: socket.socket) -> bytes:
    """Read until EOF."""
    parts = []
    while data := connection.recv(1 << 20):
        parts.append(data)
    return b"".join(parts)


class Mesh:
    """The session's lab; ``reset`` takes away what one test put into it."""

    def __init__(self) -> None:
        self.capture = CAPTURE
        self._pods: list[Pod] = []
        self._objects: list[str] = []
        self._log_starts: dict[int, int] = {}

    # -- life -----------------------------------------------------------------

    def up(self, *more: str, nodes: int = 2, capture: str = CAPTURE) -> None:
        """Make the lab anew; ``more`` are further arguments of ``scripts/lab up``."""
        self.capture = capture
        self.lab("up", "--nodes", str(nodes), "--workers", WORKERS, "--capture", capture, *more)

    def down(self) -> None:
        self.reset()
        self.lab("down")

    def begin_test(self) -> None:
        """From here on ``records`` shows only what this test caused."""
        for node, path in self._logs():
            wait_for(f"agent-{node} to have recorded what was before", lambda: self._is_settled(node, path))  # noqa: B023
        self._log_starts = {node: path.stat().st_size for node, path in self._logs()}

    def reset(self) -> None:
        """Delete this test's pods and objects."""
        for pod in reversed(self._pods):
            pod.close()
        names = [f"Pod/{pod.workload}" for pod in self._pods] + self._objects
        if names:
            self._pods.clear()
            self._objects.clear()
            self.lab("delete", *names)

    def lab(self, *arguments: str, check: bool = True, stdin: str = "", timeout_s: float = 180.0) -> str:
        """Run ``scripts/lab`` and return what it printed on standard output."""
        done = subprocess.run(
            [_LAB, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=_ENVIRONMENT,
            check=False,
        )
        if check and done.returncode:
            raise LabCommandError(f"lab {' '.join(arguments)} ended with {done.returncode}: {done.stderr}{done.stdout}")
        return done.stdout

    # -- what is in it ----------------------------------------------------------

    def pod(
        self,
        name: str,
        *,
        node: int = 1,
        namespace: str = "default",
        service_account: str | None = None,
        labels: Mapping[str, str] | None = None,
        ports: Sequence[int] = (),
        mesh: bool = True,
    ) -> Pod:
        """Add a pod and return when its agent serves it; it is gone after the test."""
        arguments = ["pod", name, "--node", str(node), "--namespace", namespace]
        if service_account is not None:
            arguments += ["--service-account", service_account]
        for key, value in (labels or {}).items():
            arguments += ["--label", f"{key}={value}"]
        for port in ports:
            arguments += ["--port", str(port)]
        if not mesh:
            arguments.append("--no-mesh")
        made = Pod(self, json.loads(self.lab(*arguments)))
        self._pods.append(made)
        return made

    def node(self, number: int) -> Pod:
        """A node's own namespace, outside of every pod network; 0 is the CA's.  The caller closes it."""
        addresses = {"ipv4": f"10.247.0.{number + 10}", "ipv6": f"fd52:4647::{number + 10}"}
        made = Pod(self, {"name": f"node-{number}", "namespace": "", "node": number, "identity": None, **addresses})
        made.netns, made.cgroup = self.node_netns(number), None
        return made

    def delete_pod(self, pod: Pod) -> None:
        pod.close()
        self._pods.remove(pod)
        self.lab("delete", f"Pod/{pod.workload}")

    def apply(self, manifest: str) -> str:
        """Apply YAML; every object in it is deleted after the test."""
        printed = self.lab("apply", "-", stdin=manifest)
        for line in printed.splitlines():
            name = line.split()[0]
            if (
                name.count("/") == 2
                and not name.lower().startswith(("pod/", "namespace/"))
                and name not in self._objects
            ):
                self._objects.append(name)
        return printed

    def service(
        self, name: str, *, app: str, port: int, target_port: int, namespace: str = "default", annotations: str = "{}"
    ) -> tuple[str, str]:
        """Apply a Service that selects ``app=<app>``; returns its IPv4 and IPv6 cluster addresses."""
        self.apply(
            f"apiVersion: v1\nkind: Service\n"
            f"metadata: {{name: {name}, namespace: {namespace}, annotations: {annotations}}}\n"
            f"spec:\n  selector: {{app: {app}}}\n  ipFamilyPolicy: PreferDualStack\n"
            f"  ports: [{{port: {port}, targetPort: {target_port}}}]\n"
        )
        for row in self.ringfence(1, "services"):
            if (row["namespace"], row["name"]) == (namespace, name):
                v4 = next(ip for ip in row["cluster_ips"] if ":" not in ip)
                v6 = next(ip for ip in row["cluster_ips"] if ":" in ip)
                return v4, v6
        raise AssertionError(f"no service {namespace}/{name} at agent-1")

    # -- faults -----------------------------------------------------------------

    @contextmanager
    def applied(self, manifest: str) -> Iterator[None]:
        """Apply YAML for the length of the block."""
        names = [line.split()[0] for line in self.lab("apply", "-", stdin=manifest).splitlines()]
        try:
            yield
        finally:
            self.lab("delete", *names)

    @contextmanager
    def tapped(self, path: Path, *, deadline_s: float = 120.0) -> Iterator[None]:
        """Record the link between the nodes for the length of the block; fails if a packet was missed."""
        tap = subprocess.Popen(
            [_LAB, "tap", str(path), "--seconds", str(deadline_s)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_ENVIRONMENT,
        )
        with tap:
            assert tap.stdout is not None
            assert tap.stderr is not None
            assert tap.stdout.readline() == b"recording\n", tap.stderr.read()
            try:
                yield
                self._wait_until_recorded(path)
            finally:
                tap.send_signal(signal.SIGINT)
                counted = tap.stderr.read().decode()
        assert "\n0 packets dropped by kernel" in counted, counted

    def _wait_until_recorded(self, path: Path) -> None:
        """Send a packet over the link and wait until the file has it: what came before is there too."""
        mark = os.urandom(16)

        def send() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(mark, ("10.247.0.12", 9))

        in_namespace(self.node_netns(1), send)

        def look() -> bool:
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - 65536))
                return mark in file.read()

        wait_for("the end of the recording", look)

    @staticmethod
    def node_netns(node: int) -> Path:
        """The network namespace of a node; 0 is the CA's."""
        return Path(f"/run/netns/rf_{LAB_NAME}-node{node}")

    @contextmanager
    def stopped(self, what: str, *, how: str = "stop") -> Iterator[None]:
        """``stop`` or ``kill`` the CA or an agent for the length of the block."""
        self.lab(how, what)
        try:
            yield
        finally:
            self.lab("start", what)

    @contextmanager
    def configured(self, **proxy: float | str) -> Iterator[None]:
        """Run all agents with these values under ``[proxy]`` for the length of the block: two restarts each."""
        before = {path: path.read_text() for path in sorted(STATE_DIR.glob("agent-*/agent.toml"))}
        section = "".join(f"{key} = {value}\n" for key, value in proxy.items())
        try:
            for path, text in before.items():
                path.write_text(f"{text}\n[proxy]\n{section}")
                self.lab("restart", path.parent.name)
            yield
        finally:
            for path, text in before.items():
                path.write_text(text)
                self.lab("restart", path.parent.name)

    @contextmanager
    def cut(self, one: int, other: int) -> Iterator[None]:
        """Cut the link between two nodes (the CA is node 0) for the length of the block."""
        self.lab("cut", str(one), str(other))
        try:
            yield
        finally:
            self.lab("heal", str(one), str(other))

    # -- what the agents say ------------------------------------------------------

    def ringfence(self, node: int, *arguments: str) -> Any:
        """What ``ringfence ... --json`` prints on a node."""
        return json.loads(self.lab("ringfence", str(node), *arguments, "--json"))

    def agent_pid(self, node: int) -> int:
        pid: int = self.ringfence(node, "status")["pid"]
        return pid

    def agent_pids(self, node: int) -> list[int]:
        """All processes of an agent: its own, and those of its workers if it has any."""
        status = self.ringfence(node, "status")
        return [status["pid"], *(worker["pid"] for worker in status["workers"])]

    def log(self, node: int) -> list[dict[str, Any]]:
        """All lines that an agent logged since the test began, access records among them."""
        path = STATE_DIR / f"agent-{node}" / "log"
        with path.open("rb") as file:
            file.seek(self._log_starts.get(node, 0))
            lines = file.read().split(b"\n")
        return [json.loads(line) for line in lines[:-1] if line.startswith(b"{")]

    def records(self, node: int, **fields: Any) -> list[dict[str, Any]]:
        """The access records of an agent since the test began whose fields have these values."""
        return [
            line
            for line in self.log(node)
            if "close_reason" in line and all(line.get(key) == value for key, value in fields.items())
        ]

    def record(self, node: int, **fields: Any) -> dict[str, Any]:
        """Wait for exactly one such access record and return it."""
        found = wait_for(
            f"an access record at agent-{node} with {fields}; there are {self.records(node)}",
            lambda: self.records(node, **fields),
        )
        assert len(found) == 1, found
        return found[0]

    def metrics(self, node: int) -> dict[str, float]:
        """The samples of an agent's ``/metrics``, by name and labels as printed."""

        def fetch() -> bytes:
            with socket.create_connection(("127.0.0.1", 15020), DEADLINE_S) as connection:
                connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")
                return read_all(connection)

        samples: dict[str, float] = {}
        for line in in_namespace(self.node_netns(node), fetch).decode().splitlines():
            if line.startswith(("istio_", "ringfence_")):
                name, _, value = line.rpartition(" ")
                samples[name] = float(value)
        return samples

    def metric(self, node: int, name: str, **labels: str) -> float:
        """The sum of the samples of ``name`` whose labels have these values."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(
            value
            for sample, value in self.metrics(node).items()
            if sample.partition("{")[0] == name and all(each in sample for each in wanted)
        )

    def _is_settled(self, node: int, path: Path) -> bool:
        """Whether no connection is open and every one that ended has its record in the log."""
        try:
            samples = self.metrics(node)
        except OSError:
            return True  # it is down: nothing will be written
        if samples["ringfence_connections_open"]:
            return False
        ended = sum(value for name, value in samples.items() if name.startswith("ringfence_connections_closed_total"))
        # An id is NODE-RUN-NUMBER, with worker processes NODE-RUN.WORKER-NUMBER.
        ids = re.findall(rb'"event":"closed","time":"[^"]+","id":"([^".]+)(?:\.\d+)?-\d+"', path.read_bytes())
        return ids.count(ids[-1]) == ended if ended and ids else not ended

    def _logs(self) -> list[tuple[int, Path]]:
        return [(int(path.parent.name.removeprefix("agent-")), path) for path in STATE_DIR.glob("agent-*/log")]
