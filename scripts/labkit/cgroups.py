"""Pods of `--capture cgroup`: a cgroup and addresses on the node, as a service of a virtual machine has them.

    ROOT/rf/node-1/default_web        ROOT is where cgroup v2 is mounted, rf the lab's prefix

Such a pod is in its node's network namespace, with the node's other pods.
"""

import errno
import os
import signal
import time
from pathlib import Path
from typing import Final

from labkit import layout
from labkit.errors import LabError

_PATIENCE_S: Final = 5.0
_POLL_S: Final = 0.01


def root() -> Path:
    """Where cgroup v2 is mounted, alone or beside version 1."""
    with open("/proc/self/mounts", encoding="utf-8") as file:
        for line in file:
            fields = line.split(" ")
            if fields[2] == "cgroup2":
                return Path(fields[1])
    raise LabError("cgroup v2 is not mounted: mount -t cgroup2 cgroup2 /sys/fs/cgroup")


def path(node: int, namespace: str, name: str) -> str:
    """The cgroup of a pod, below the root."""
    return f"/{layout.CGROUP}/{layout.node_name(node)}/{namespace}_{name}"


def directory(cgroup: str) -> Path:
    """Where that is."""
    return root() / cgroup.lstrip("/")


def create(cgroup: str) -> None:
    """Make it, with all above it."""
    directory(cgroup).mkdir(parents=True, exist_ok=True)


def join(cgroup: str) -> None:
    """Move the calling process there; only sockets that it makes from now on are the pod's."""
    (directory(cgroup) / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")


def remove(cgroup: str, *, grace_s: float) -> None:
    """End who runs there (SIGTERM, after ``grace_s`` SIGKILL), and remove it."""
    where = directory(cgroup)
    _signal(where, signal.SIGTERM)
    limit = time.monotonic() + grace_s
    while _members(where) and time.monotonic() < limit:
        time.sleep(_POLL_S)
    _remove(where)


def remove_all() -> bool:
    """Remove every cgroup of the lab; False when there was none."""
    try:
        where = root() / layout.CGROUP
    except LabError:
        return False
    if not where.is_dir():
        return False
    _remove(where)
    return True


def _remove(where: Path) -> None:
    limit = time.monotonic() + _PATIENCE_S
    while where.is_dir():
        try:
            below = [Path(each.path) for each in os.scandir(where) if each.is_dir()]
        except FileNotFoundError:
            return
        for each in below:
            _remove(each)
        _signal(where, signal.SIGKILL)
        try:
            where.rmdir()
        except FileNotFoundError:
            return
        except OSError as exc:
            if exc.errno != errno.EBUSY or time.monotonic() > limit:
                raise LabError(f"{where} can not be removed: {exc.strerror}") from exc
            time.sleep(_POLL_S)


def _members(where: Path) -> list[int]:
    try:
        return [int(each) for each in (where / "cgroup.procs").read_text(encoding="ascii").split()]
    except OSError:
        return []


def _signal(where: Path, number: signal.Signals) -> None:
    for pid in _members(where):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass
