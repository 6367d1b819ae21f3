"""Where the processes of a workload are: the directory of its cgroup."""

import os
from pathlib import Path
from typing import Final

from node_agent.model import Cgroup

_USERS: Final = "user.slice"  # in there users name cgroups as they like
_DEPTH: Final = 5


def find(root: Path, cgroup: Cgroup) -> Path:
    """The directory below ``root``, where cgroup v2 is mounted; raises OSError whose strerror is for people."""
    if cgroup.path:
        found = [path] if (path := root / cgroup.path.lstrip("/")).is_dir() else []
        what = f"cgroup {cgroup.path}"
    else:
        found = list(_units(root, cgroup.unit, _DEPTH))
        what = f"unit {cgroup.unit}"
    if not found:
        raise OSError(0, f"{what} is not there; start it")
    if len(found) > 1:
        places = ", ".join(str(each.relative_to(root)) for each in found)
        raise OSError(0, f"{what} is there more than once ({places}); name one by its cgroup")
    return found[0]


def _units(directory: Path, unit: str, depth: int) -> list[Path]:
    """Units are directories in slices, which are directories in slices."""
    found: list[Path] = []
    try:
        entries = [each for each in os.scandir(directory) if each.is_dir()]
    except OSError:
        return []  # gone meanwhile
    for each in entries:
        if each.name == unit:
            found.append(Path(each.path))
        elif depth and each.name.endswith(".slice") and each.name != _USERS:
            found += _units(Path(each.path), unit, depth - 1)
    return found


def around(root: Path, said: str) -> list[Path]:
    """The directories of a process's cgroup and of all around it, nearest first.

    ``said`` is its /proc/PID/cgroup; a process in another cgroup namespace or hierarchy is in none.
    """
    path = next((line.removeprefix("0::") for line in said.splitlines() if line.startswith("0::/")), "/")
    names = [each for each in path.split("/") if each]
    if ".." in names:
        return []
    return [root.joinpath(*names[:depth]) for depth in range(len(names), 0, -1)]


def identifier(path: Path) -> int:
    """The number by which BPF knows the cgroup; a directory made again has another; raises OSError."""
    return path.stat().st_ino
