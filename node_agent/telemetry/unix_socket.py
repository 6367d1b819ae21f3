"""Listening on a unix socket, which only its owner may use unless it is said otherwise.

A socket file outlives the process that made it, so a stale one is in the way of
the next start.  It is removed only when it is a socket and nobody answers on it.
"""

import os
import socket
import stat
from pathlib import Path
from typing import Final

import trio

from node_agent.errors import AgentError

_BACKLOG: Final = 64
_ANSWER_S: Final = 1.0  # a live agent's kernel answers at once, however busy the agent is


class UnixListener:
    """A listening unix socket with ``mode``; use as a context manager: the file is removed at the end.

    The directory is made, with mode 0755, if it is missing.  ``setting`` is what an error tells the operator to change.

    Raises:
        AgentError: the path is taken, or can not be used.
    """

    def __init__(self, path: Path, *, mode: int = 0o600, setting: str = "[agent] runtime_dir") -> None:
        self._path = path
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            missing = [each for each in path.parents if not each.exists()]
            path.parent.mkdir(parents=True, exist_ok=True)
            for each in missing:
                each.chmod(0o755)  # whatever the umask says
            _remove_stale(path, setting)
            sock.bind(str(path))
            # Between bind and listen nobody can connect: no moment with the wrong mode.
            path.chmod(mode)
            sock.listen(_BACKLOG)
            sock.setblocking(False)
            self._inode = path.lstat().st_ino
        except OSError as error:
            sock.close()
            raise AgentError(f"can not listen on {path}: {error.strerror or error}; check {setting}") from error
        except AgentError:
            sock.close()
            raise
        self.listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))

    def __enter__(self) -> "UnixListener":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening and remove the file, unless another process has put its own there."""
        self.listener.socket.close()
        try:
            if self._path.lstat().st_ino == self._inode:
                self._path.unlink()
        except OSError:
            pass


def _remove_stale(path: Path, setting: str) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise AgentError(f"{path} exists and is not a socket; move it away, or change {setting}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_ANSWER_S)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            os.unlink(path)
        except FileNotFoundError:
            return
        else:
            raise AgentError(f"another agent answers on {path}; stop it first, or change {setting}")
