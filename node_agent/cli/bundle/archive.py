"""The bundle's file: a tar.gz that only its owner may read, and an index of what is in it.

Member names are made harmless: parts are named after pods, whose names are
somebody else's, and an archive must not write outside of where it is unpacked.
"""

import gzip
import io
import os
import re
import sys
import tarfile
from contextlib import ExitStack
from datetime import datetime
from types import TracebackType
from typing import Final

from node_agent.cli.bundle.redact import redacted
from node_agent.cli.terminal import printable

_TOP: Final = "ringfence-bundle"
_MAX_PART_BYTES: Final = 32 * 1024 * 1024
_MAX_NAME: Final = 80
_NOT_HARMLESS: Final = re.compile(r"[^A-Za-z0-9._-]+")


class NotWritable(Exception):
    """The file can not be made; the text says what to do."""


class Archive:
    """Writes to ``path``, a file that is not there yet, or ``-``; use as a context manager."""

    def __init__(self, path: str, *, at: datetime) -> None:
        self.parts = 0
        self.problems = 0
        self._path = path
        self._at_s = int(at.timestamp())
        self._index: list[str] = [f"ringfence bundle of {at:%Y-%m-%d %H:%M:%S} UTC", ""]
        self._stack = ExitStack()

    def __enter__(self) -> "Archive":
        try:
            if self._path == "-":
                raw = sys.stdout.buffer
                if raw.isatty():
                    raise NotWritable("a terminal can not show an archive; send it to a file or a program: -o - | ...")
            else:
                fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                raw = self._stack.enter_context(os.fdopen(fd, "wb"))
        except FileExistsError as error:
            raise NotWritable(f"{self._path} is there already; name a new file: -o FILE") from error
        except OSError as error:
            raise NotWritable(f"can not write {self._path}: {error.strerror}; name another file: -o FILE") from error
        zipped = self._stack.enter_context(gzip.GzipFile(fileobj=raw, mode="wb", mtime=self._at_s, filename=""))
        self._tar = self._stack.enter_context(tarfile.open(fileobj=zipped, mode="w|"))
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if exc is None:
                self._write("index.txt", ("\n".join(self._index) + "\n").encode())
        finally:
            try:
                self._stack.close()
            except OSError as error:
                raise NotWritable(f"can not write {self._path}: {error.strerror}") from error

    def add(self, name: str, content: str, problem: str) -> None:
        """Add a part, ``/`` between folders; ``problem`` says why it is missing, or not whole.

        What looks like a secret is taken out here, of every part alike.
        """
        data = redacted(content).encode("utf-8", "backslashreplace")
        if len(data) > _MAX_PART_BYTES:
            data = data[-_MAX_PART_BYTES:]  # of a log the end matters
            problem = f"{problem}; " * bool(problem) + f"only its last {_MAX_PART_BYTES} bytes"
        safe = "/".join(_NOT_HARMLESS.sub("_", piece).lstrip(".")[:_MAX_NAME] or "_" for piece in name.split("/"))
        if data:
            self._write(safe, data)
            self.parts += 1
        self.problems += bool(problem)
        self._index.append(f"{safe}: {printable(redacted(problem)) or 'ok'}")

    def _write(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(f"{_TOP}/{name}")
        member.size, member.mode, member.mtime = len(data), 0o600, self._at_s
        try:
            self._tar.addfile(member, io.BytesIO(data))
        except OSError as error:
            raise NotWritable(f"can not write {self._path}: {error.strerror}") from error
