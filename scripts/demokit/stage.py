"""The demo's lab: six pods on two nodes, the programs in them, and what the agents recorded.

Everything is done by ``scripts/lab``, as a user would do it; what the agents say is
read from their logs and their ``ringfence`` command.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from demokit.screen import Screen

T = TypeVar("T")

ROOT: Final = Path(__file__).resolve().parents[2]
WEB_PORT: Final = 8080
STORE_PORT: Final = 6379
DIGEST_PORT: Final = 9000
WEB_V4: Final = "10.248.0.80"
WEB_V6: Final = "fd52:4647:ffff::80"
_DEADLINE_S: Final = 15.0
_POLL_S: Final = 0.02

_PODS: Final = (
    # name, node, service account, further arguments
    ("cart", 1, "cart", ()),
    ("web-1", 1, "web", ("--label", "app=web", "--port", str(WEB_PORT))),
    ("web-2", 2, "web", ("--label", "app=web", "--port", str(WEB_PORT))),
    ("web-3", 2, "web", ("--label", "app=web", "--port", str(WEB_PORT))),
    ("store", 2, "store", ("--label", "app=store", "--port", str(STORE_PORT), "--port", str(DIGEST_PORT))),
    ("legacy", 1, "legacy", ("--no-mesh",)),
)
WEB_PODS: Final = tuple(name for name, _, _, further in _PODS if "app=web" in further)

EJECTED_S: Final = 5

_SERVICES: Final = f"""\
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  selector: {{app: web}}
  clusterIPs: [{WEB_V4}, "{WEB_V6}"]
  ports: [{{port: 80, targetPort: {WEB_PORT}}}]
---
apiVersion: ringfence.io/v1alpha1
kind: TrafficPolicy
metadata: {{name: web}}
spec:
  targetRef: {{kind: Service, name: web}}
  loadBalancing: {{policy: round-robin}}
  outlierDetection: {{consecutiveConnectFailures: 3, baseEjectionTime: {EJECTED_S}s, maxEjectionTime: {EJECTED_S}s}}
---
apiVersion: v1
kind: Service
metadata: {{name: store}}
spec:
  selector: {{app: store}}
  ports: [{{name: redis, port: {STORE_PORT}}}, {{name: digest, port: {DIGEST_PORT}}}]
"""

_NGINX: Final = """\
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{}}
http {{
  access_log {directory}/access.log;
  client_body_temp_path {directory}; proxy_temp_path {directory}; fastcgi_temp_path {directory};
  uwsgi_temp_path {directory}; scgi_temp_path {directory};
  keepalive_timeout 0;
  server {{
    listen {port}; listen [::]:{port};
    location / {{ return 200 "$hostname $remote_addr $http_x_secret\\n"; }}
  }}
}}
"""


class StageError(Exception):
    """The stage itself failed: no proof can be shown on it."""


class Stage:
    """The lab of the demo, from ``up`` to ``down``."""

    def __init__(self, name: str, screen: Screen) -> None:
        self.name = name
        self.screen = screen
        self.pods: dict[str, dict[str, Any]] = {}
        self._state_dir = Path(f"/run/ringfence-lab-{name}")
        self._directory = self._state_dir / "demo"
        self._environment = {**os.environ, "RINGFENCE_LAB": name}
        self._nginx: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def scratch(self) -> Path:
        """A directory that goes with the lab."""
        return self._directory

    # -- up and down ------------------------------------------------------------

    def up(self) -> None:
        """Make the lab, its pods and its programs; returns when all of them answer."""
        self.lab("up")
        self._directory.mkdir()
        for name, node, account, further in _PODS:
            described = self.lab(
                "pod", name, "--node", str(node), "--service-account", account, "--no-wait", *further
            ).stdout
            self.pods[name] = json.loads(described)
        for name in WEB_PODS:
            self.start_nginx(name)
        everywhere = ("--bind", "*", "-::*", "--protected-mode", "no")
        self._program("store", "redis-server", *everywhere, "--port", str(STORE_PORT), "--save", "")
        self._program("store", "socat", f"TCP6-LISTEN:{DIGEST_PORT},fork,reuseaddr,ipv6only=0", "EXEC:sha256sum")
        self.lab("apply", "-", stdin=_SERVICES)
        self._wait_until_served()
        for name in WEB_PODS:
            self.wait_until_open(name, WEB_PORT)
        self.wait_until_open("store", STORE_PORT)
        self.wait_until_open("store", DIGEST_PORT)

    def down(self) -> None:
        """Take the lab down; nothing of it is left."""
        self.lab("down")

    def _wait_until_served(self) -> None:
        enrolled = {pod["name"]: pod["node"] for pod in self.pods.values() if pod["identity"]}

        def all_served() -> bool:
            rows = [row for node in (1, 2) for row in self.ringfence(node, "workloads")]
            return {row["name"] for row in rows if row["state"] == "serving"} == enrolled.keys()

        self.wait("the agents to serve every pod", all_served)

    def wait_until_open(self, pod: str, port: int) -> None:
        """Wait until a program in the pod listens; asked on the pod's loopback, which is not captured."""
        ask = ("nc", "-z", "127.0.0.1", str(port))
        self.wait(f"a program on port {port} of {pod}", lambda: self.in_pod(pod, *ask).returncode == 0)

    # -- commands ---------------------------------------------------------------

    def lab(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run ``scripts/lab``; raises StageError with what it printed."""
        done = self._run([str(ROOT / "scripts/lab"), *arguments], stdin=stdin)
        if done.returncode:
            raise StageError(f"scripts/lab {' '.join(arguments)} failed: {done.stderr.strip() or done.stdout.strip()}")
        return done

    def in_pod(self, pod: str, *command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a program in a pod and wait for it, whatever its exit code."""
        return self._run([str(ROOT / "scripts/lab"), "exec", pod, "--", *command], stdin=stdin)

    def typed(self, pod: str, command: str, *, run: str | None = None) -> subprocess.CompletedProcess[str]:
        """Show a shell command on the screen and run it in a pod, or ``run`` where that is too long to show."""
        self.screen.command(pod, command)
        return self.in_pod(pod, "sh", "-c", run or command)

    def begin(self, pod: str, command: str) -> "subprocess.Popen[str]":
        """Start a shell command in a pod; the caller waits for it."""
        return subprocess.Popen(
            [str(ROOT / "scripts/lab"), "exec", pod, "--", "sh", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=self._environment,
        )

    def ringfence(self, node: int, *arguments: str) -> Any:
        """What ``ringfence ... --json`` says on a node."""
        return json.loads(self.lab("ringfence", str(node), *arguments, "--json").stdout)

    def _run(self, command: list[str], *, stdin: str = "") -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                command, input=stdin, capture_output=True, text=True, env=self._environment, timeout=60, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise StageError(f"{' '.join(command)} did not end within {error.timeout:.0f} s") from error

    # -- programs ---------------------------------------------------------------

    def start_nginx(self, pod: str) -> None:
        """Start the web server of a pod."""
        directory = self._directory / pod
        directory.mkdir(exist_ok=True)
        configuration = directory / "nginx.conf"
        configuration.write_text(_NGINX.format(directory=directory, port=WEB_PORT), encoding="ascii")
        self._nginx[pod] = self._program(pod, "nginx", "-c", str(configuration))

    def kill_nginx(self, pod: str) -> None:
        """SIGKILL for the web server of a pod and its workers."""
        process = self._nginx.pop(pod)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def requests_seen_by(self, pod: str, secret: str) -> int:
        """How many requests with this secret the web server of a pod has logged."""
        return (self._directory / pod / "access.log").read_text(encoding="utf-8").count(secret)

    def _program(self, pod: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a program that stays; ``scripts/lab down`` ends it, also after this process is gone."""
        with (self._directory / f"{pod}.log").open("ab") as log:
            return subprocess.Popen(
                [str(ROOT / "scripts/lab"), "exec", pod, "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
                cwd="/",
            )

    # -- what happened ----------------------------------------------------------

    def wait(self, what: str, look: Callable[[], T], *, deadline_s: float = _DEADLINE_S) -> T:
        """Return what ``look`` finds as soon as it is true; raises StageError after the deadline."""
        limit = time.monotonic() + deadline_s
        while not (found := look()):
            if time.monotonic() > limit:
                raise StageError(f"waited {deadline_s:g} s for {what}")
            time.sleep(_POLL_S)
        return found

    def mark(self) -> dict[int, int]:
        """A point in the agents' logs; ``records`` shows what comes after it."""
        return {node: self._log(node).stat().st_size for node in (1, 2)}

    def records(self, node: int, since: Mapping[int, int], **fields: Any) -> list[dict[str, Any]]:
        """The access records of an agent since a mark whose fields have these values."""
        with self._log(node).open("rb") as log:
            log.seek(since[node])
            lines = log.read().split(b"\n")[:-1]
        parsed = [json.loads(line) for line in lines if b'"close_reason"' in line]
        return [each for each in parsed if all(each.get(key) == value for key, value in fields.items())]

    def wait_for_records(
        self, node: int, since: Mapping[int, int], count: int = 1, **fields: Any
    ) -> list[dict[str, Any]]:
        """Wait for so many; a record is written when its connection has ended.  May return fewer."""
        try:
            self.wait("records", lambda: len(self.records(node, since, **fields)) >= count, deadline_s=5.0)
        except StageError:
            pass  # the proof says what is missing
        return self.records(node, since, **fields)

    def _log(self, node: int) -> Path:
        return self._state_dir / f"agent-{node}" / "log"

    @contextmanager
    def tapped(self, name: str) -> Iterator[Path]:
        """Record the link for the length of the block; what was sent in it is in the file afterwards."""
        path = self._directory / f"{name}.pcap"
        tap = subprocess.Popen(
            [str(ROOT / "scripts/lab"), "tap", str(path), "--seconds", "120"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment,
        )
        try:
            assert tap.stdout is not None
            if "recording" not in tap.stdout.readline():
                raise StageError(f"the link can not be recorded: {tap.communicate()[1].strip()}")
            yield path
        finally:
            tap.send_signal(signal.SIGINT)
            tap.communicate()

    def wait_on_wire(self, path: Path, text: bytes) -> None:
        """Wait until ``text`` is in the recording, readable, and therefore all that was sent before it."""
        self.wait("the recorder", lambda: text in path.read_bytes())
