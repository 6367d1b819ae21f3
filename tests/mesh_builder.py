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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.mesh_lab import (
    CAPTURE,
    DEADLINE_S,
    ENVIRONMENT,
    LAB,
    LAB_NAME,
    ROOT,
    STATE_DIR,
    WORKERS,
    LabCommandError,
    in_namespace,
    read_all,
    wait_for,
)
from tests.mesh_pod import Pod

__all__ = [
    "CAPTURE",
    "DEADLINE_S",
    "LAB_NAME",
    "ROOT",
    "STATE_DIR",
    "WORKERS",
    "LabCommandError",
    "Mesh",
    "Pod",
    "in_namespace",
    "read_all",
    "wait_for",
]


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
            [LAB, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=ENVIRONMENT,
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
            [LAB, "tap", str(path), "--seconds", str(deadline_s)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
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
