"""A state directory belongs to one server at a time, and to no other user.

Two servers on one SQLite file would both take themselves for the one that does
the background duties; several servers have a PostgreSQL.  The lock is the
kernel's, so that a server that was killed leaves none behind.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from ca.authority.errors import AuthorityError

LOCK: Final = "serving.lock"
_MAX_PID_BYTES: Final = 20


class Claim:
    """The right to serve from ``directory``; held until ``release``, or until the process ends."""

    def __init__(self, directory: Path) -> None:
        """Take it.

        Raises:
            AuthorityError: another process serves from there, or the directory can not be closed to other users.
        """
        path = directory / LOCK
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as exc:
            raise AuthorityError(f"{path}: can not be made: {exc.strerror}; the server has to be able to") from exc
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            pid = os.read(self._descriptor, _MAX_PID_BYTES).decode("ascii", "replace") or "unknown"
            self.release()
            raise AuthorityError(
                f"{directory}: another `ringfence ca serve` serves from it, process {pid}: stop that one first; "
                "several at a time need a PostgreSQL, [ca] database"
            ) from exc
        except OSError as exc:
            self.release()
            raise AuthorityError(f"{path}: can not be locked: {exc.strerror}; use a local disk") from exc
        with suppress(OSError):  # the disk is full: the number of the process is only for people
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, str(os.getpid()).encode())

    def release(self) -> None:
        """Let others serve."""
        os.close(self._descriptor)


def close_to_others(directory: Path) -> bool:
    """Take every right that other users have in ``directory``; returns whether they had one.

    Raises:
        AuthorityError: it belongs to somebody else.
    """
    try:
        if not directory.stat().st_mode & 0o077:
            return False
        directory.chmod(0o700)
    except OSError as exc:
        raise AuthorityError(
            f"{directory}: is open to other users and can not be closed: {exc.strerror}; "
            f"run as its owner: chmod 0700 {directory}"
        ) from exc
    return True
