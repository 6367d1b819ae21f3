"""What the machine says: versions, the agent's processes, its logs.

Programs are run without a shell, with a deadline and a bounded answer.
"""

import os
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

from node_agent import __version__

_PROGRAM_S: Final = 10.0
_LOG_BYTES: Final = 8 * 1024 * 1024
_PACKAGES: Final = ("cryptography", "h11", "h2", "msgpack", "prometheus-client", "pyroute2", "pyyaml", "trio")
_ENVIRONMENT: Final = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


class Missing(Exception):
    """A part can not be had; the text says why."""


def run(command: Sequence[str], *, accept: Sequence[int] = (0,)) -> str:
    """What ``command`` prints; raises Missing."""
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=_PROGRAM_S, env=_ENVIRONMENT, stdin=subprocess.DEVNULL, check=False
        )
    except FileNotFoundError as error:
        raise Missing(f"{command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise Missing(f"{command[0]} did not end within {_PROGRAM_S:g} s") from error
    except OSError as error:
        raise Missing(f"{command[0]}: {error.strerror}") from error
    if done.returncode not in accept:
        raise Missing(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.decode(errors='replace')[:500]}")
    return done.stdout.decode(errors="replace")


def versions() -> dict[str, object]:
    """What is installed here."""
    kernel = os.uname()
    return {
        "ringfence": __version__,
        "python": sys.version,
        "openssl": ssl.OPENSSL_VERSION,
        "kernel": f"{kernel.sysname} {kernel.release} {kernel.version} {kernel.machine}",
        "distribution": _distribution(),
        "processors": os.cpu_count(),
        "memory": _first_line("/proc/meminfo"),
        "programs": {name: _version(command) for name, command in _PROGRAMS.items()},
        "packages": {name: _package(name) for name in _PACKAGES},
    }


_PROGRAMS: Final[Mapping[str, Sequence[str]]] = {
    "nft": ("nft", "--version"),
    "ip": ("ip", "-V"),
    "iptables": ("iptables", "--version"),
    "conntrack": ("conntrack", "--version"),
}


def _version(command: Sequence[str]) -> str:
    try:
        return run(command).strip()
    except Missing as missing:
        return str(missing)


def _package(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _distribution() -> str:
    try:
        lines = Path("/etc/os-release").read_text().splitlines()
    except OSError:
        return "unknown"
    return next((line.partition("=")[2].strip('"') for line in lines if line.startswith("PRETTY_NAME=")), "unknown")


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text().partition("\n")[0]
    except OSError:
        return "unknown"


def process(pid: int) -> str:
    """What the kernel says of a process: never its environment or its arguments; raises Missing."""
    try:
        texts = [Path(f"/proc/{pid}/{name}").read_text() for name in ("status", "limits", "sched")]
        return "\n".join([*texts, f"open files: {len(os.listdir(f'/proc/{pid}/fd'))}"])
    except OSError as error:
        raise Missing(f"/proc/{pid}: {error.strerror}") from error


def logs(pid: int | None, given: Path | None) -> Iterator[tuple[str, str]]:
    """``(name, end of the log)``: the file that was named, or what the agent writes to; raises Missing."""
    if given is not None:
        yield given.name, _tail(given)
        return
    if pid is None:
        raise Missing("it is not known where the agent logs to: it does not answer; name the file with --log FILE")
    targets: dict[str, str] = {}
    for stream, fd in (("stdout", 1), ("stderr", 2)):
        try:
            targets.setdefault(os.readlink(f"/proc/{pid}/fd/{fd}"), stream)
        except OSError as error:
            raise Missing(f"/proc/{pid}/fd: {error.strerror}; name the file with --log FILE") from error
    files = [stream for target, stream in targets.items() if os.path.isfile(target)]
    for stream in files:
        yield f"{stream}.log", _tail(Path(f"/proc/{pid}/fd/{1 if stream == 'stdout' else 2}"))
    if not files:
        yield "journal.log", run(("journalctl", "--no-pager", "--lines=20000", "--output=short-iso", f"_PID={pid}"))


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _LOG_BYTES))
            if size > _LOG_BYTES:
                file.readline()  # the rest of a line
            return file.read(_LOG_BYTES).decode(errors="replace")
    except OSError as error:
        raise Missing(f"{path}: {error.strerror}") from error
