"""Sockets inside a pod's network namespace, without a thread and without an await.

A socket belongs for ever to the namespace it was made in, so the agent enters
the pod's namespace for the length of one ``socket()`` call and leaves again
(setns(2): 6 to 25 us there and back).  Binding and connecting happen from home.
"""

import ctypes
import os
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_CLONE_NEWNET: Final = 0x40000000  # sched.h
_libc: Final = ctypes.CDLL(None, use_errno=True)  # os.setns arrives with Python 3.12


def setns_network(fd: int) -> None:
    """Move the calling thread into the network namespace ``fd``; raises OSError."""
    if _libc.setns(fd, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


def open_home() -> int:
    """Open the network namespace that this thread is in; the caller closes it.  Raises OSError."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


class NetworkNamespace:
    """An open network namespace; owns its file descriptor until ``close``.

    An open descriptor, and every socket made inside, keeps a deleted pod's
    namespace alive: close both when the pod goes.
    """

    __slots__ = ("_home", "_own_home", "_thread", "fd", "inode")

    def __init__(self, fd: int, *, home: int | None = None) -> None:
        """Take over ``fd``, an open namespace; raises OSError.

        ``home`` is the namespace that this thread is in, if the caller has it open already, and stays the caller's.
        """
        self.fd = fd
        self.inode = os.fstat(fd).st_ino
        self._own_home = home is None
        self._home = open_home() if home is None else home
        self._thread = threading.get_ident()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the namespace at ``path``; raises OSError."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return cls(fd)
        except OSError:
            os.close(fd)
            raise

    def close(self) -> None:
        os.close(self.fd)
        if self._own_home:
            os.close(self._home)

    def tcp_socket(self, family: int) -> socket.socket:
        """Return a new non-blocking TCP socket of this namespace; the caller closes it.

        Only from the thread that opened the namespace: another thread might be
        at home elsewhere.
        """
        return self.tcp_sockets(family, 1)[0]

    def tcp_sockets(self, family: int, count: int) -> list[socket.socket]:
        """Return ``count`` such sockets for one visit, which costs more than a socket does."""
        assert threading.get_ident() == self._thread
        made: list[socket.socket] = []
        try:
            with self:
                made.extend(socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) for _ in range(count))
        except OSError:
            for each in made:
                each.close()
            raise
        return made

    def __enter__(self) -> None:
        setns_network(self.fd)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            setns_network(self._home)
        except OSError:
            os.abort()  # whatever this thread did next would happen inside somebody's pod
