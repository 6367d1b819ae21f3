"""The process at the other end of a unix socket, as the kernel vouches for it.

SO_PEERCRED says which process connected; a pid alone would be a number that
the kernel gives to somebody else one day, so the process is held by a pidfd.
Where the kernel has SO_PEERPIDFD (Linux 6.5) it is that of the very process
that connected.  Older ones give the pid only, and the pidfd is opened a moment
later: a process that connects, hands the socket to another one of its pod and
ends could be mistaken for whoever got its pid within that moment.

Reading what a process of another user is in needs CAP_SYS_PTRACE, and pids
have to mean the same to us and to the workloads: the agent runs in the pid
namespace of the host.
"""

import errno
import os
import select
import socket
import struct
from pathlib import Path
from typing import Final, Self

import trio

_SO_PEERPIDFD: Final = 77  # asm-generic/socket.h; Python 3.11 has no name for it
_CREDENTIALS: Final = struct.Struct("iII")  # struct ucred, unix(7)


class UnknownProcessError(Exception):
    """Who is at the other end can not be told."""


class PeerProcess:
    """The process that connected; owns its pidfd until ``close``."""

    __slots__ = ("gid", "pid", "pidfd", "uid")

    def __init__(self, *, pid: int, uid: int, gid: int, pidfd: int) -> None:
        self.pid = pid
        self.uid = uid
        self.gid = gid
        self.pidfd = pidfd

    @classmethod
    def of(cls, sock: socket.socket | trio.socket.SocketType) -> Self:
        """Name the peer of a connected unix socket.

        Raises:
            UnknownProcessError: it is gone, or in a pid namespace that we do not see.
        """
        try:
            packed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            pid, uid, gid = _CREDENTIALS.unpack(packed)
            if pid == 0:  # unix(7) does not say so, but that is what another pid namespace's process looks like
                raise UnknownProcessError(
                    "the caller is outside of the agent's pid namespace: run the agent in that of the host"
                )
            return cls(pid=pid, uid=uid, gid=gid, pidfd=_pidfd(sock, pid))
        except OSError as error:
            raise UnknownProcessError(f"the calling process is gone: {error.strerror}") from error

    def __str__(self) -> str:
        return f"process {self.pid} of user {self.uid}"

    def close(self) -> None:
        """Let go of the process."""
        os.close(self.pidfd)

    def is_alive(self) -> bool:
        """Whether it still runs; a pidfd is readable when it does not (pidfd_open(2))."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(0)

    def network_namespace(self) -> int | None:
        """The inode of the network namespace that it is in now; None if it can not be told, so trust nothing."""
        try:
            inode = os.stat(f"/proc/{self.pid}/ns/net").st_ino
        except OSError:
            return None
        # Read first, then look: while the process lives nobody else has its pid.
        return inode if self.is_alive() else None

    def cgroup(self) -> str | None:
        """Its /proc/PID/cgroup now; None if it can not be told, so trust nothing."""
        try:
            said = Path(f"/proc/{self.pid}/cgroup").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        return said if self.is_alive() else None


def _pidfd(sock: socket.socket | trio.socket.SocketType, pid: int) -> int:
    try:
        return sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise  # it has ended: its pid may be somebody else's by now
        return os.pidfd_open(pid)
