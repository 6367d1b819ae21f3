"""A program in a terminal of its own, and what a person would see there."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final

import pyte

_DEADLINE_S: Final = 60.0


class PtyScreen:
    """Runs ``command`` in a terminal of ``columns`` by ``lines``; use as a context manager."""

    def __init__(
        self, command: Sequence[str], *, columns: int = 100, lines: int = 24, environ: Mapping[str, str] | None = None
    ) -> None:
        self.written = b""
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self._master, slave = pty.openpty()
        _set_size(slave, columns, lines)
        self.process = subprocess.Popen(
            # Who runs the tests may ignore interrupts; a terminal's program does not.
            ["setsid", "--ctty", "env", "--default-signal=INT", *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "TERM": "xterm-256color", **(environ or {})},
        )
        self.slave = slave

    def __enter__(self) -> "PtyScreen":
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(60)
        os.close(self._master)
        os.close(self.slave)

    @property
    def lines(self) -> list[str]:
        """What is on the screen now."""
        return [line.rstrip() for line in self._screen.display]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def colours(self) -> set[str]:
        """The colours of all characters that are shown."""
        cells = (cell for row in self._screen.buffer.values() for cell in row.values())
        return {cell.fg for cell in cells if cell.data.strip()}

    def press(self, keys: str) -> None:
        """Type."""
        os.write(self._master, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        """Pull at the window's corner."""
        self._screen.resize(lines, columns)
        _set_size(self._master, columns, lines)

    def until(self, look: Callable[["PtyScreen"], Any]) -> Any:
        """Let the program write until ``look`` finds something on the screen."""
        limit = time.monotonic() + _DEADLINE_S
        while not (found := look(self)):
            if time.monotonic() > limit:
                raise AssertionError(f"the screen does not show it:\n{self.text}")
            self._read(0.05)
        return found

    def wait(self) -> int:
        """The exit code, when it has ended and all that it wrote was read."""
        limit = time.monotonic() + _DEADLINE_S
        while self.process.poll() is None and time.monotonic() < limit:
            self._read(0.05)
        self._read(0.05)
        return self.process.wait(0)

    def _read(self, seconds: float) -> None:
        ready, _, _ = select.select([self._master], [], [], seconds)
        if ready:
            data = os.read(self._master, 65536)
            self.written += data
            self._stream.feed(data)


def _set_size(fd: int, columns: int, lines: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
