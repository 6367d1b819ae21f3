"""The CA and the agents as processes: each in its node's network namespace and its own session.

Only the network namespace is the node's: mounts are shared with the machine, so
that an agent finds the pods' namespaces under /run/netns.  A process outlives the
command that started it; :file:`supervise.sh` files its number and its exit code.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from labkit import agents, layout, netns, state
from labkit.errors import LabError

READY_S: Final = 60.0
_SPAWN_S: Final = 30.0
_TOKEN_TTL_S: Final = 600
_STOP_S: Final = 45.0  # the agent's default grace is 30 s
_POLL_S: Final = 0.02
_LOG_TAIL_LINES: Final = 15
_SUPERVISE: Final = Path(__file__).with_name("supervise.sh")


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process of the lab: a CA (node 0) or the agent of a node; ``port`` is where a CA answers."""

    name: str
    node: int
    directory: Path
    port: int = layout.CA_PORT

    @property
    def log(self) -> Path:
        """What it printed since the lab came up; restarts append."""
        return self.directory / "log"

    def pid(self) -> int | None:
        """Its number, None when it does not run."""
        try:
            number, started = (self.directory / "pid").read_text(encoding="ascii").split()
            fields = Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except (OSError, ValueError):
            return None
        running = fields[0] not in "ZX" and fields[19] == started  # proc_pid_stat(5): fields 3 and 22
        return int(number) if running else None

    def exit_code(self) -> int | None:
        """How it ended; 128+N by signal N; None when it runs or never ran."""
        try:
            return int((self.directory / "exit").read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None


def ca(index: int = 0, replica: int = 0) -> Process:
    """The CA of one of the lab's trust domains, or a further replica of it, on node 0."""
    return Process(
        name=layout.ca_name(index, replica),
        node=0,
        directory=layout.ca_dir(index, replica),
        port=layout.ca_port(index, replica),
    )


def agent(node: int) -> Process:
    """The agent of node K."""
    return Process(name=f"agent-{node}", node=node, directory=layout.agent_dir(node))


def named(lab: state.Lab, name: str) -> Process:
    """``ca`` (``ca-2`` and so on for further trust domains, ``ca-replica-2`` for a replica) or ``agent-K``."""
    cas = {layout.ca_name(index, replica): ca(index, replica) for index, replica in lab.cas}
    if name in cas:
        return cas[name]
    prefix, _, number = name.partition("-")
    if prefix == "agent" and number.isdigit() and int(number) in lab.node_numbers:
        return agent(int(number))
    known = ", ".join([*cas, *(f"agent-{node}" for node in lab.node_numbers)])
    raise LabError(f"{name!r} is not a process of the lab; there are {known}")


def running_agents(lab: state.Lab) -> list[int]:
    """The nodes whose agent runs."""
    return [node for node in lab.node_numbers if agent(node).pid() is not None]


def ringfence_command() -> str:
    """The project's command; ``RINGFENCE_LAB_COMMAND`` names another (the lab's tests bring a small one)."""
    command = os.environ.get("RINGFENCE_LAB_COMMAND") or str(layout.ROOT / ".venv/bin/ringfence")
    found = shutil.which(command)
    if not found:
        raise LabError(f"{command}: not there or not executable; run `scripts/setup`")
    return found


def start(lab: state.Lab, process: Process) -> None:
    """Start it and wait until it serves.

    Raises:
        LabError: it runs already, ended at once or is not ready in time; with the end of its log.
    """
    begin(lab, process)
    wait_until_ready(process)


def begin(lab: state.Lab, process: Process) -> None:
    """Start it without waiting until it serves."""
    if process.pid() is not None:
        raise LabError(f"{process.name} runs already (pid {process.pid()})")
    for name in ("pid", "exit"):
        (process.directory / name).unlink(missing_ok=True)
    if process.node != 0:
        _renew_join_token(lab, process.node)
    what = ["ca", "serve"] if process.node == 0 else ["agent"]
    config = process.directory / ("ca.toml" if process.node == 0 else "agent.toml")
    command = [lab.ringfence, *what, "--config", str(config)]
    with netns.inside(layout.node_netns(process.node)):
        supervisor = subprocess.Popen(
            ["/bin/sh", str(_SUPERVISE), str(process.directory), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
    supervisor.returncode = 0  # it is to outlive this command: no warning that nobody waits for it
    deadline = time.monotonic() + _SPAWN_S
    while not (process.directory / "pid").exists():
        if time.monotonic() > deadline:
            raise LabError(f"{process.name} did not start within {_SPAWN_S:.0f} s")
        time.sleep(_POLL_S)


def join_token(node: int) -> Path:
    """The file with agent K's join token."""
    return layout.agent_dir(node) / "join-token"


def _renew_join_token(lab: state.Lab, node: int) -> None:
    """A token that has expired is replaced: an agent that was down for long has no node certificate any more either."""
    path = join_token(node)
    try:
        age_s = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        age_s = _TOKEN_TTL_S
    if 0 <= age_s < _TOKEN_TTL_S:
        return
    config = layout.ca_dir(lab.ca_of(node)) / "ca.toml"
    arguments = ["--config", str(config), "--node", layout.node_name(node)]
    token = run_ringfence(lab, 0, ["ca", "token", *arguments, "--ttl-s", str(_TOKEN_TTL_S)])
    state.write_atomically(path, token, mode=0o600)


def wait_until_ready(process: Process, *, timeout_s: float = READY_S) -> None:
    """Wait until the CA's port answers, or the agent says that it is ready."""
    deadline = time.monotonic() + timeout_s
    reason = "it does not answer"
    while time.monotonic() < deadline:
        if process.pid() is None:
            raise LabError(f"{process.name} ended with exit code {_awaited_exit_code(process)}{log_tail(process)}")
        ready, reason = _ca_ready(process.port) if process.node == 0 else _agent_ready(process.node)
        if ready:
            return
        time.sleep(_POLL_S)
    raise LabError(f"{process.name} is not ready after {timeout_s:.0f} s: {reason}{log_tail(process)}")


def _ca_ready(port: int) -> tuple[bool, str]:
    address = (layout.link_v4(0), port)
    with netns.inside(layout.node_netns(0)):
        probe = socket.socket()
    with probe:
        probe.settimeout(1)
        try:
            probe.connect(address)
        except OSError as exc:
            return False, f"connecting to {address[0]}:{address[1]}: {exc.strerror or exc}"
    return True, ""


def _agent_ready(node: int) -> tuple[bool, str]:
    try:
        status = agents.ask(node, "/status")
    except agents.AgentSilentError as exc:
        return False, str(exc)
    return bool(status.get("ready")), "; ".join(str(each) for each in status.get("reasons", []))


def stop(process: Process) -> int | None:
    """SIGTERM, and wait for the end: the exit code.

    Raises:
        LabError: it does not run, or does not end.
    """
    return _end(process, signal.SIGTERM, _STOP_S)


def kill(process: Process) -> int | None:
    """SIGKILL, and wait for the end."""
    return _end(process, signal.SIGKILL, _SPAWN_S)


def _end(process: Process, number: signal.Signals, timeout_s: float) -> int | None:
    pid = process.pid()
    if pid is None:
        raise LabError(f"{process.name} does not run")
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return _awaited_exit_code(process)
    try:
        signal.pidfd_send_signal(pidfd, number)
        if not netns.wait_for_exit(pidfd, timeout_s):
            raise LabError(
                f"{process.name} (pid {pid}) still runs {timeout_s:.0f} s after {number.name}; "
                f"`scripts/lab kill {process.name}` ends it{log_tail(process)}"
            )
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)
    return _awaited_exit_code(process)


def _awaited_exit_code(process: Process) -> int | None:
    """The supervisor files it right after the end; None if the supervisor was killed too."""
    deadline = time.monotonic() + 1.0
    while process.exit_code() is None and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return process.exit_code()


def log_tail(process: Process) -> str:
    """The end of its log, for an error message."""
    try:
        lines = process.log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    if not lines:
        return "; its log is empty"
    return "; its log ends with:\n" + "\n".join(f"  {line}" for line in lines[-_LOG_TAIL_LINES:])


def run_ringfence(lab: state.Lab, node: int, arguments: Sequence[str]) -> str:
    """Run a short ringfence command in a node's namespace: what it printed.

    Raises:
        LabError: it failed; with what it said.
    """
    with netns.inside(layout.node_netns(node)):
        done = subprocess.run(
            [lab.ringfence, *arguments], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, cwd="/"
        )
    if done.returncode:
        raise LabError(
            f"`ringfence {' '.join(arguments)}` failed with exit code {done.returncode}: {done.stderr.strip()}"
        )
    sys.stderr.write(done.stderr)
    return done.stdout
