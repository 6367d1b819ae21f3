"""The kernel's file events for one directory: inotify(7), through libc.

Python has no binding for it, and a dependency for three functions is not worth
its memory.  Events are hints: they say when to look, and which file a writer
has just closed.  Whoever uses them compares stat signatures now and then as
well, because inotify misses changes through other hosts, other mounts and the
targets of symbolic links, and its queue can overflow.
"""

import ctypes
import os
import struct
from pathlib import Path
from typing import Final, NamedTuple, Self

# From <sys/inotify.h>.
_IN_CLOSE_WRITE: Final = 0x8
_IN_MOVED_FROM: Final = 0x40
_IN_MOVED_TO: Final = 0x80
_IN_CREATE: Final = 0x100
_IN_DELETE: Final = 0x200
_IN_DELETE_SELF: Final = 0x400
_IN_MOVE_SELF: Final = 0x800
_IN_ONLYDIR: Final = 0x01000000
_IN_UNMOUNT: Final = 0x2000
_IN_Q_OVERFLOW: Final = 0x4000
_IN_IGNORED: Final = 0x8000
_WATCHED: Final = (
    _IN_CLOSE_WRITE
    | _IN_MOVED_FROM
    | _IN_MOVED_TO
    | _IN_CREATE
    | _IN_DELETE
    | _IN_DELETE_SELF
    | _IN_MOVE_SELF
    | _IN_ONLYDIR
)
_LOST: Final = _IN_UNMOUNT | _IN_Q_OVERFLOW | _IN_IGNORED | _IN_DELETE_SELF | _IN_MOVE_SELF
_EVENT: Final = struct.Struct("iIII")  # wd, mask, cookie, length of the name
_READ_BYTES: Final = 256 * 1024  # a whole kubectl apply in one read


class Events(NamedTuple):
    """What one read told.

    ``complete`` holds names whose content is complete now (closed after
    writing, renamed, removed), ``created`` names that have just appeared, maybe
    to be written yet; ``lost`` means that events may be missing or the
    directory itself went away.
    """

    complete: frozenset[str]
    created: frozenset[str]
    lost: bool


class DirectoryWatch:
    """An inotify descriptor that watches one directory; close it, or use it as a context manager."""

    def __init__(self, directory: Path) -> None:
        """Begin to watch.

        Raises:
            OSError: there is no such directory, or no more watches (fs.inotify.max_user_watches).
        """
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise _os_error("inotify_init1")
        if libc.inotify_add_watch(self._descriptor, os.fsencode(directory), _WATCHED) < 0:
            error = _os_error(str(directory))
            os.close(self._descriptor)
            raise error

    def fileno(self) -> int:
        return self._descriptor

    def read(self) -> Events:
        """Everything that has happened; never waits."""
        complete: set[str] = set()
        created: set[str] = set()
        lost = False
        while True:
            try:
                content = os.read(self._descriptor, _READ_BYTES)
            except BlockingIOError:
                return Events(frozenset(complete), frozenset(created - complete), lost)
            offset = 0
            while offset < len(content):
                _, mask, _, length = _EVENT.unpack_from(content, offset)
                offset += _EVENT.size
                name = os.fsdecode(content[offset : offset + length].rstrip(b"\0"))
                offset += length
                lost |= bool(mask & _LOST)
                if name:
                    (created if mask & _IN_CREATE else complete).add(name)

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _os_error(what: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), what)
