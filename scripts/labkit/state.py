"""The lab's state directory, and the lock that serialises the commands that change it.

The directory is a tmpfs of mode 0700: the CA's keys and the join tokens that lie
in it never reach a disk.  ``lab.json`` is written last by ``up``: a directory
without it is what an interrupted ``up`` left, and counts as no lab at all.
"""

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from labkit import layout, netns
from labkit.errors import LabError

_MS_NOSUID_NODEV_NOEXEC: Final = 2 | 4 | 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """What ``up`` decided.  ``ringfence`` is the command that the CA and the agents are started with.

    ``domains`` are the trust domains of nodes that are not of the lab's first
    one, by the node's number in decimal (JSON has no other keys).
    """

    nodes: int
    capture: str
    ringfence: str
    agents: bool
    domains: dict[str, str] = field(default_factory=dict)
    ca_replicas: int = 1  # of the first trust domain's CA; with several they share a PostgreSQL

    @property
    def trust_domains(self) -> list[str]:
        """Each has a CA, in this order."""
        return list(dict.fromkeys([layout.TRUST_DOMAIN, *self.domains.values()]))

    def domain_of(self, node: int) -> str:
        """The trust domain of a node."""
        return self.domains.get(str(node), layout.TRUST_DOMAIN)

    def ca_of(self, node: int) -> int:
        """Which of the CAs an agent belongs to."""
        return self.trust_domains.index(self.domain_of(node))

    @property
    def cas(self) -> list[tuple[int, int]]:
        """Every CA process: which trust domain, and which of its replicas."""
        further = [(index, 0) for index in range(1, len(self.trust_domains))]
        return [(0, replica) for replica in range(self.ca_replicas)] + further

    @property
    def node_numbers(self) -> range:
        """The nodes that pods run on."""
        return range(1, self.nodes + 1)

    def require_node(self, node: int, *, ca_too: bool = False) -> int:
        """Raises LabError when there is no such node."""
        first = 0 if ca_too else 1
        if first <= node <= self.nodes:
            return node
        raise LabError(f"no node {node}: this lab has nodes {first} to {self.nodes} (scripts/lab up --nodes N)")


def load() -> Lab:
    """The lab that is up.

    Raises:
        LabError: there is none.
    """
    try:
        return Lab(**json.loads(layout.LAB_FILE.read_text(encoding="utf-8")))
    except FileNotFoundError:
        pass
    except PermissionError as exc:
        raise LabError(f"{layout.STATE_DIR}: only root may look into the lab") from exc
    if layout.STATE_DIR.is_mount():
        raise LabError("no lab is up: an earlier `scripts/lab up` did not end; run `scripts/lab up` again")
    raise LabError("no lab is up; start one with `scripts/lab up`")


def save(lab: Lab) -> None:
    """From now on the lab is up."""
    write_json(layout.LAB_FILE, asdict(lab))


def mount_state() -> None:
    """Make the empty state directory."""
    layout.STATE_DIR.mkdir(mode=0o700, exist_ok=True)
    options = "mode=0700,size=512m"
    try:  # noswap: Linux 6.4
        netns.mount("ringfence-lab", str(layout.STATE_DIR), "tmpfs", _MS_NOSUID_NODEV_NOEXEC, options + ",noswap")
    except OSError:
        netns.mount("ringfence-lab", str(layout.STATE_DIR), "tmpfs", _MS_NOSUID_NODEV_NOEXEC, options)
    layout.MANIFESTS_DIR.mkdir()
    layout.PODS_DIR.mkdir()


def unmount_state() -> None:
    """Forget everything; also what an interrupted command left."""
    shutil.rmtree(layout.WORKLOAD_API_DIR, ignore_errors=True)  # sockets of agents that were killed
    while netns.unmount(str(layout.STATE_DIR)):
        pass
    try:
        layout.STATE_DIR.rmdir()
    except FileNotFoundError:
        pass
    except OSError as exc:
        raise LabError(f"{layout.STATE_DIR}: has files that the lab did not make; look at them and remove it") from exc


@contextmanager
def locked(command: str) -> Iterator[None]:
    """Only one command that changes the lab runs at a time; the others wait for it.

    The kernel drops the lock when its holder dies, however it dies.
    """
    fd = os.open(layout.LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 200, 0).decode(errors="replace").strip()
            if holder and os.isatty(2):
                print(f"lab: waiting for another command ({holder})", file=sys.stderr)
            fcntl.flock(fd, fcntl.LOCK_EX)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{command}, pid {os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def write_atomically(path: Path, text: str, *, mode: int = 0o644) -> None:
    """A reader sees the old file or the new one; the temporary name begins with a dot, which watchers skip."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with open(fd, "w", encoding="utf-8") as file:
        file.write(text)
    os.rename(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write a file of the lab's own state."""
    write_atomically(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path, default: Any) -> Any:
    """Read a file of the lab's own state; ``default`` when there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return default
