"""Network namespaces: make, enter, delete them, and find who runs in them.

``setns(2)`` is per thread and the lab has one thread, so that entering one is a
pair of system calls.  Nothing here starts a process.
"""

import ctypes
import errno
import os
import select
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from labkit import layout
from labkit.errors import LabError

_CLONE_NEWNET: Final = 0x40000000
_MS_BIND: Final = 0x1000
_MS_REC: Final = 0x4000
_MS_SHARED: Final = 1 << 20
_MNT_DETACH: Final = 2
_PR_SET_PDEATHSIG: Final = 1
_KILL_ROUNDS: Final = 50  # a program that forks faster than it is killed

_libc: Final = ctypes.CDLL(None, use_errno=True)


def libc_call(what: str, result: int) -> None:
    """Raise the errno of a libc call that returned -1."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """mount(2)."""
    encoded = [text.encode() if text is not None else None for text in (source, target, kind, options)]
    source_b, target_b, kind_b, options_b = encoded
    libc_call(f"mount {target}", _libc.mount(source_b, target_b, kind_b, ctypes.c_ulong(flags), options_b))


def unmount(target: str) -> bool:
    """Detach one mount of ``target``; False when there is none."""
    return bool(_libc.umount2(target.encode(), _MNT_DETACH) == 0)


def setns(fd: int, kind: int = _CLONE_NEWNET) -> None:
    """Move the calling thread."""
    libc_call("setns", _libc.setns(fd, kind))


def unshare(kinds: int) -> None:
    """unshare(2)."""
    libc_call("unshare", _libc.unshare(kinds))


def path(name: str) -> str:
    """The file that holds a named namespace."""
    return f"{layout.NETNS_DIR}/{name}"


def exists(name: str) -> bool:
    """Whether there is such a file (also one that a killed command left unfinished)."""
    return os.path.lexists(path(name))


def existing() -> list[str]:
    """The namespaces of this lab."""
    try:
        names = os.listdir(layout.NETNS_DIR)
    except FileNotFoundError:
        return []
    return sorted(name for name in names if layout.is_ours(name))


@contextmanager
def inside(name: str) -> Iterator[None]:
    """The calling thread is in the namespace for the length of the block."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(path(name), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        os.close(home)
        raise
    try:
        setns(there)
        try:
            yield
        finally:
            setns(home)
    finally:
        os.close(there)
        os.close(home)


def create(name: str) -> None:
    """Make a namespace as ``ip netns add`` does; what a killed command left of it is replaced."""
    delete(name)
    _share_netns_dir()
    target = path(name)
    os.close(os.open(target, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        unshare(_CLONE_NEWNET)
        try:
            mount("/proc/thread-self/ns/net", target, None, _MS_BIND)
        finally:
            setns(home)
    finally:
        os.close(home)


def _share_netns_dir() -> None:
    """Namespaces that are made later must show up in mount namespaces that exist already (ip-netns(8))."""
    directory = str(layout.NETNS_DIR)
    os.makedirs(directory, exist_ok=True)
    try:
        mount("", directory, None, _MS_SHARED | _MS_REC)
    except OSError as exc:
        if exc.errno != errno.EINVAL:  # not a mount point yet
            raise
        mount(directory, directory, None, _MS_BIND | _MS_REC)
        mount("", directory, None, _MS_SHARED | _MS_REC)


def delete(name: str) -> None:
    """Forget a namespace; the kernel frees it when nobody uses it any more."""
    target = path(name)
    while unmount(target):
        pass
    try:
        os.unlink(target)
    except FileNotFoundError:
        pass


def write_sysctls(settings: dict[str, str]) -> None:
    """Set sysctls of the namespace the caller is in; keys are paths under /proc/sys."""
    for key, value in settings.items():
        with open(f"/proc/sys/{key}", "w", encoding="ascii") as file:
            file.write(value)


def processes_in(names: Iterable[str]) -> list[int]:
    """Who runs in these namespaces: the processes whose namespace is the same inode."""
    wanted: set[tuple[int, int]] = set()
    for name in names:
        try:
            found = os.stat(path(name))
        except FileNotFoundError:
            continue
        wanted.add((found.st_dev, found.st_ino))
    own = os.stat("/proc/self/ns/net")
    wanted.discard((own.st_dev, own.st_ino))
    return [pid for pid in _all_pids() if _namespace_of(pid) in wanted] if wanted else []


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _namespace_of(pid: int) -> tuple[int, int] | None:
    try:
        found = os.stat(f"/proc/{pid}/ns/net")
    except OSError:  # it ended, or is a zombie
        return None
    return found.st_dev, found.st_ino


def end_processes(names: Iterable[str], *, grace_s: float) -> None:
    """End whoever runs in these namespaces: SIGTERM, and after ``grace_s`` SIGKILL.

    Raises:
        LabError: somebody can not be killed (stuck in the kernel).
    """
    names = list(names)
    if grace_s > 0:
        _signal_all(processes_in(names), signal.SIGTERM, wait_s=grace_s)
    for _ in range(_KILL_ROUNDS):
        left = processes_in(names)
        if not left:
            return
        _signal_all(left, signal.SIGKILL, wait_s=1.0)
    raise LabError(f"processes {processes_in(names)} do not end, not even by SIGKILL; see `ps -o pid,stat,wchan,args`")


def _signal_all(pids: Iterable[int], number: signal.Signals, *, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    fds: list[int] = []
    try:
        for pid in pids:
            try:
                fd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            fds.append(fd)
            try:
                signal.pidfd_send_signal(fd, number)
            except ProcessLookupError:
                pass
        for fd in fds:
            wait_for_exit(fd, deadline - time.monotonic())
    finally:
        for fd in fds:
            os.close(fd)


def wait_for_exit(pidfd: int, timeout_s: float) -> bool:
    """Whether the process ended (a zombie has ended) within the time."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(max(0, round(timeout_s * 1000))))


def set_host_name(name: str) -> None:
    """sethostname(2), in the caller's UTS namespace."""
    libc_call("sethostname", _libc.sethostname(name.encode(), len(name.encode())))


def end_with_parent() -> None:
    """For the child between fork and exec: it is terminated when its parent is gone, however that ended."""
    libc_call("prctl", _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0))
