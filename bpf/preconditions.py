"""Can this machine load BPF at all?  Each reason says what to do."""

import errno
import os
from pathlib import Path

from bpf import syscalls
from bpf.errors import BpfError
from bpf.syscalls import MapType


def require_all(root: Path) -> None:
    """Raises BpfError: not root, no BPF, no bpffs, no cgroup v2."""
    require_bpf()
    if mount_of(root) != "bpf":
        raise BpfError(
            f"{root.parent} is not on a BPF file system, and nothing can be pinned there; "
            "mount one: mount -t bpf bpf /sys/fs/bpf"
        )
    cgroup_root()


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
    """Where cgroup v2 is mounted, alone or beside v1; raises BpfError."""
    for fields in _mounts(mounts):
        if fields[2] == "cgroup2":
            return Path(fields[1])
    raise BpfError("cgroup v2 is not mounted; mount it: mount -t cgroup2 cgroup2 /sys/fs/cgroup (or .../unified)")


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
    return [line.split(" ") for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines()]
