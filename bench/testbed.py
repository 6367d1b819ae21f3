"""The place of the benchmark: a lab of its own, two pairs of pods, the applications in them.

    node 1                         node 2
    rf-client     ---- in the mesh ----   rf-server        Ringfence
    plain-client  ---- not in it -----    plain-server     direct, Envoy, HAProxy

All pods are alike (same lab, same veths, same link), and each server pod runs
the same applications, one process each: nginx, the echo server of ``load.c``,
and iperf3 when it is needed.

Everything ends with the benchmark, however that ends: programs die with this
process (PR_SET_PDEATHSIG), and the lab is taken down by a guard, a process
of its own that waits for the end of a pipe that only this process holds open.
"""

import fcntl
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

ROOT: Final = Path(__file__).resolve().parents[1]
HTTP: Final = 8080
ECHO: Final = 9000
APPLICATIONS: Final = {"http": HTTP, "echo": ECHO, "bulk": 5201, "bulk2": 5202}

_LAB: Final = str(ROOT / "scripts" / "lab")
_MAX_FILES: Final = 131_072  # 10,000 connections cost a proxy 20,000 descriptors
_READY_S: Final = 15.0
_TCP_LISTEN: Final = "0A"  # in /proc/net/tcp

_NGINX: Final = """\
daemon off;
master_process off;
worker_processes 1;
worker_rlimit_nofile 65536;
pid {directory}/pid;
error_log stderr error;
events {{ worker_connections 32768; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 600s;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen {port} backlog=16384;
        location / {{ default_type text/plain; return 200 "It is served.\\n"; }}
    }}
}}
"""


class BenchError(Exception):
    """The benchmark can not go on; the text says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod of the lab."""

    name: str
    node: int
    ipv4: str
    netns: str


class Testbed:
    """A lab with pods and applications, for the length of a ``with``; servers on node 2, or all on one node."""

    def __init__(self, *, mesh: bool, plain: bool, capture: str = "inpod", one_node: bool = False) -> None:
        self._lab_options: Final = ["--capture", capture, *(["--nodes", "1"] if one_node else [])]
        self._server_node: Final = "1" if one_node else "2"
        self.name: Final = os.environ.get("RINGFENCE_LAB") or "bench"
        self._environment: Final = {**os.environ, "RINGFENCE_LAB": self.name}
        self._kinds: Final = [kind for kind, wanted in (("rf", mesh), ("plain", plain)) if wanted]
        self._processes: list[subprocess.Popen[bytes]] = []
        self._commands: dict[str, None] = {}
        self.pods: dict[str, Pod] = {}
        self.directory = Path()

    def __enter__(self) -> Self:
        # A proxy has two descriptors for each connection, and some of its own.
        self.max_connections = (_raise_file_limit() - 100) // 2
        self._lock = open(f"/run/ringfence-bench-{self.name}.lock", "w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BenchError(f"another scripts/bench uses lab {self.name!r}; RINGFENCE_LAB=NAME uses another") from None
        self.directory = Path(tempfile.mkdtemp(prefix="ringfence-bench-"))
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", 'cat >/dev/null; rm -rf "$2"; exec "$1" down >/dev/null', "guard", _LAB, self.directory],
            stdin=subprocess.PIPE,
            env=self._environment,
            start_new_session=True,
        )
        try:
            self._build()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _build(self) -> None:
        self.lab("up", *self._lab_options, *([] if "rf" in self._kinds else ["--no-agents"]))
        for kind in self._kinds:
            options = [] if kind == "rf" else ["--no-mesh"]
            for role, node in (("client", "1"), ("server", self._server_node)):
                self.lab("pod", f"{kind}-{role}", "--node", node, *options)
        for pod in self.status()["pods"]:
            self.pods[pod["name"]] = Pod(
                name=pod["name"], node=pod["node"], ipv4=pod["ipv4"], netns=f"/run/netns/{pod['netns']}"
            )
        self.load = compile_load(self.directory)
        for kind in self._kinds:
            self._start_applications(self.pods[f"{kind}-server"])

    def _start_applications(self, pod: Pod) -> None:
        directory = self.directory / f"nginx-{pod.name}"
        directory.mkdir()
        config = directory / "nginx.conf"
        config.write_text(_NGINX.format(directory=directory, port=HTTP))
        self.start(pod, ["/usr/sbin/nginx", "-e", "stderr", "-p", str(directory), "-c", str(config)], ports=[HTTP])
        self.start(pod, [str(self.load), "echo", str(ECHO)], ports=[ECHO])

    def _end(self) -> None:
        for process in reversed(self._processes):
            process.kill()
        for process in self._processes:
            process.wait()
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait()
        self._lock.close()

    def lab(self, *arguments: str) -> str:
        """Run scripts/lab: what it printed."""
        done = subprocess.run(
            [_LAB, *arguments], capture_output=True, text=True, env=self._environment, check=False, timeout=120
        )
        if done.returncode:
            raise BenchError(f"scripts/lab {' '.join(arguments)} failed: {done.stderr.strip()}")
        return done.stdout

    def status(self) -> Any:
        """What scripts/lab knows."""
        return json.loads(self.lab("status", "--json"))

    def metric(self, node: int, name: str) -> float:
        """The sum of an agent's samples of this name."""
        program = (
            "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:15020/metrics').read().decode())"
        )
        lines = self.lab("exec", f"node-{node}", "--", sys.executable, "-c", program).splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.split("{")[0].split(" ")[0] == name)

    def configure_agents(self, section: str, key: str, value: str) -> None:
        """Set a key in every agent's configuration; they read it when they are restarted."""
        for path in Path(f"/run/ringfence-lab-{self.name}").glob("agent-*/agent.toml"):
            lines = [line for line in path.read_text().splitlines() if not line.startswith(f"{key} ")]
            header = f"[{section}]"
            if header not in lines:
                lines.append(header)
            lines.insert(lines.index(header) + 1, f"{key} = {value}")
            path.write_text("\n".join(lines) + "\n")

    def start(
        self,
        pod: Pod,
        command: Sequence[str],
        *,
        ports: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a program in a pod and return when it listens on ``ports``; it dies with the benchmark."""
        log = self.directory / f"{pod.name}-{Path(command[0]).name}-{len(self._processes)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                self.inside(pod, command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd="/",
            )
        self._processes.append(process)
        for port in ports:
            self._wait_until_listening(pod, port, process, log)
        return process

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """End a program that ``start`` started."""
        process.kill()
        process.wait()
        self._processes.remove(process)

    @staticmethod
    def parse(line: str) -> dict[str, float]:
        """What load.c prints."""
        report: dict[str, float] = json.loads(line)
        return report

    def commands(self) -> list[str]:
        """Every different command so far, with the pod that it ran in; DIR is the run's temporary directory."""
        return list(self._commands)

    def inside(self, pod: Pod, command: Sequence[str]) -> list[str]:
        """The command, in the pod's network namespace, dying with this process; no process is left in between."""
        self._commands[f"{pod.name}: {shlex.join(command)}".replace(str(self.directory), "DIR")] = None
        return ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net={pod.netns}", "--", *command]

    def _wait_until_listening(self, pod: Pod, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
        deadline = time.monotonic() + _READY_S
        while process.poll() is None and time.monotonic() < deadline:
            # Until the process is in the pod's namespace, /proc/PID/net shows another.
            if _netns_of(process.pid) == os.stat(pod.netns).st_ino and port in _listening(process.pid):
                return
            time.sleep(0.01)
        raise BenchError(f"{process.args!r} does not listen on port {port}: {_read(log)[-2000:]}")


def compile_load(directory: Path) -> Path:
    """Make the program of load.c in ``directory``."""
    program = directory / "load"
    source = Path(__file__).with_name("load.c")
    subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-o", str(program), str(source)], check=True)
    return program


def _listening(pid: int) -> set[int]:
    """The TCP ports that somebody listens on in the network namespace of a process."""
    rows = [line.split() for table in ("tcp", "tcp6") for line in _read(Path(f"/proc/{pid}/net/{table}")).splitlines()]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == _TCP_LISTEN}


def _netns_of(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return -1


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _raise_file_limit() -> int:
    """As many descriptors as we get, for us and all that we start; not every container lets root raise the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (max(hard, _MAX_FILES), hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
        except (OSError, ValueError):
            continue
        return wanted
    return hard


def require_tools() -> None:
    """Raises: BenchError: a program is missing."""
    programs = ("wrk", "iperf3", "nginx", "haproxy", "gcc", "openssl", "nsenter", "setpriv")
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        raise BenchError(
            f"not installed: {', '.join(missing)}; run scripts/setup, and apt-get install gcc if it is gcc"
        )
    if os.geteuid() != 0:
        raise BenchError("the benchmark makes network namespaces: run it as root")


def say(text: str) -> None:
    """Progress, on standard error."""
    print(f"bench: {text}", file=sys.stderr, flush=True)
