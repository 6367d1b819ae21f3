"""Can this machine load BPF at all?  Each reason says what to do."""

import errno
import os
import re
from pathlib import Path
from typing import Final

from bpf import syscalls
from bpf.errors import BpfError
from bpf.syscalls import MapType

_ROOT_ID: Final = 1  # of the first cgroup of the kernel (fs/kernfs/dir.c counts from 1)
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")  # proc(5): space, tab, newline and backslash in /proc/self/mounts


def require_all(root: Path) -> None:
    """Raises BpfError: not root, no BPF, no bpffs or one that nothing can be pinned in, no cgroup v2."""
    require_bpf()
    if mount_of(root) == "bpf":
        _require_place(root)
    else:
        raise BpfError(
            f"{root.parent} is not on a BPF file system, and nothing can be pinned there; "
            "mount one: mount -t bpf bpf /sys/fs/bpf"
        )
    cgroup_root()


def _require_place(root: Path) -> None:
    """Raises BpfError unless there can be a directory ``root`` of ours."""
    dotted = next((part for part in root.parts if "." in part), None)
    if dotted is not None:
        raise BpfError(
            f"{root}: a BPF file system has no names with dots ({dotted}); choose another directory with --pins and "
            "[capture] pins"
        )
    if not root.parent.is_dir():
        raise BpfError(
            f"{root.parent} is not there; make it, or choose another directory with --pins and [capture] pins"
        )
    if root.exists() and not root.is_dir():
        raise BpfError(f"{root} is no directory; choose another one with --pins and [capture] pins")
    if os.statvfs(root.parent).f_flag & os.ST_RDONLY:
        raise BpfError(
            f"{root.parent} is mounted read-only, and nothing can be pinned there; mount -o remount,rw /sys/fs/bpf"
        )


def require_bpf() -> None:
    """Raises BpfError unless this process may use bpf(2)."""
    try:
        fd = syscalls.create_map(type=MapType.ARRAY, key_bytes=4, value_bytes=4, max_entries=1, name="rf_try")
    except OSError as error:
        if error.errno == errno.EPERM:
            who = "as root" if os.geteuid() else "with CAP_BPF and CAP_NET_ADMIN; in a container, a privileged one"
            raise BpfError(f"not permitted to use BPF: run this {who}") from error
        if error.errno == errno.ENOSYS:
            raise BpfError("this kernel has no BPF (CONFIG_BPF_SYSCALL); use capture mode inpod") from error
        raise BpfError(f"BPF does not work here: {error.strerror}") from error
    os.close(fd)


def cgroup_root(mounts: Path = Path("/proc/self/mounts")) -> Path:
    """Where cgroup v2 is mounted, alone or beside v1, the node's root before any other; raises BpfError."""
    found = [Path(fields[1]) for fields in _mounts(mounts) if fields[2] == "cgroup2"]
    if found:
        return next((each for each in found if _is_node_root(each)), found[0])
    raise BpfError("cgroup v2 is not mounted; mount it: mount -t cgroup2 cgroup2 /sys/fs/cgroup (or .../unified)")


def node_cgroup_root(mounts: Path = Path("/proc/self/mounts")) -> Path:
    """The root of all cgroups of the node: what is linked there sees every process.

    Raises:
        BpfError: only a container's own part of them is mounted.  What is linked there would not see the pods.
    """
    found = cgroup_root(mounts)
    if not _is_node_root(found):
        raise BpfError(
            f"{found} is not the root of the node's cgroups but the part of a container, and the pods are outside of "
            "it; run the agent in the node's cgroup namespace, or mount the node's /sys/fs/cgroup into the container"
        )
    return found


def _is_node_root(mount: Path) -> bool:
    """Also in a cgroup namespace, where every root looks like one."""
    try:
        return mount.stat().st_ino == _ROOT_ID
    except OSError:
        return False  # mounted over, or not ours to look at


def mount_of(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The type of the file system that ``path`` is on, or would be."""
    best, kind = Path("/"), ""
    for fields in _mounts(mounts):
        point = Path(fields[1])
        if path.parent.is_relative_to(point) and len(point.parts) >= len(best.parts):
            best, kind = point, fields[2]
    return kind


def kernel_version() -> tuple[int, int]:
    """The running kernel's."""
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(digit for digit in minor if digit.isdigit()) or 0)


def _mounts(mounts: Path) -> list[list[str]]:
    lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    return [[_ESCAPED.sub(lambda code: chr(int(code[1], 8)), each) for each in line.split(" ")] for line in lines]
