"""The file that access records are appended to: rotated by size, or by somebody else.

Before each write, which is one for all lines of 10 ms, it looks where its path
leads, and opens the file that is there now.  So ``logrotate`` may rename the
file whenever it likes, and worker processes may share it: who sees it full
renames it, and the others follow.  While somebody writes or rotates, the
directory is locked (flock(2)): the lock needs no file of its own, and ends with
the process that holds it.

A write is whole or not at all: what a full disk left of one is cut off again,
so that every line of the file is a record.
"""

import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import Final

_MODE: Final = 0o640  # identities and addresses of everybody: for root, and for a group that collects them


class RecordFile:
    """A ``Target`` of a LineWriter; opened at once."""

    def __init__(self, path: Path, *, rotate_bytes: int, keep_files: int) -> None:
        """Rotate before it grows past ``rotate_bytes`` (0: never); ``keep_files`` old ones stay.  Raises OSError."""
        self._path = path
        self._rotate_bytes = rotate_bytes
        self._keep_files = keep_files
        self._directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._fd: int = _open(path)
        except OSError:
            os.close(self._directory)
            raise

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)
        os.close(self._directory)

    def write(self, chunk: bytes) -> None:
        """Append all of ``chunk``, or nothing of it; raises OSError."""
        fcntl.flock(self._directory, fcntl.LOCK_EX)
        try:
            self._follow()
            size = os.fstat(self._fd).st_size
            if self._rotate_bytes and size and size + len(chunk) > self._rotate_bytes:
                self._rotate()
                size = os.fstat(self._fd).st_size
            self._append(chunk, size)
        finally:
            fcntl.flock(self._directory, fcntl.LOCK_UN)

    def refresh(self) -> None:
        """Let go of a file that was renamed or removed."""
        try:
            self._follow()
        except OSError:
            pass  # the next write says so, to whom it may concern

    def _append(self, chunk: bytes, size: int) -> None:
        view = memoryview(chunk)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:
            os.ftruncate(self._fd, size)
            raise

    def _follow(self) -> None:
        try:
            there = self._path.lstat()
        except FileNotFoundError:
            self._reopen()
            return
        if not os.path.samestat(there, os.fstat(self._fd)):
            self._reopen()

    def _rotate(self) -> None:
        """Rename, the oldest first.  A file that can not be renamed is written on: too big is better than lost."""
        try:
            if not self._keep_files:
                os.ftruncate(self._fd, 0)
                return
            for number in range(self._keep_files, 0, -1):
                older = self._path.with_name(f"{self._path.name}.{number}")
                newer = self._path.with_name(f"{self._path.name}.{number - 1}") if number > 1 else self._path
                if newer.exists():
                    newer.replace(older)
        except OSError:
            pass
        self._follow()

    def _reopen(self) -> None:
        fresh = _open(self._path)
        os.close(self._fd)
        self._fd = fresh


def _open(path: Path) -> int:
    # O_NONBLOCK: opening a FIFO would wait for a reader.  A link would be renamed, and not what it leads to.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, _MODE)
        os.fchmod(fd, _MODE)  # whatever the umask
    except FileExistsError:
        fd = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return fd
