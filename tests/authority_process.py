"""``ringfence ca`` as a process: its commands, and a server whose log can be waited for."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio

from tests.authority_builder import Authority

RINGFENCE: Final = [sys.executable, "-m", "node_agent.cli.main"]


def ringfence(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*RINGFENCE, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120)


class Process:
    """A running ``ringfence ca serve`` and its log, line by line."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.log: list[dict[str, Any]] = []
        self._partial = b""

    async def logged(self, event: str, **fields: object) -> dict[str, Any]:
        """Read until ``event`` was logged with these fields."""
        while True:
            for line in self.log:
                if line.items() >= {"event": event, **fields}.items():
                    return line
            assert await self._read(), f"the log ended without {event}: {self.log} {self._partial!r}"

    async def read_on(self) -> None:
        """Read until the process has ended: one that is not read stops when the pipe is full."""
        while await self._read():
            pass

    async def _read(self) -> bool:
        assert self.process.stderr is not None
        data = await self.process.stderr.receive_some()
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            try:
                self.log.append(json.loads(line))
            except ValueError:
                raise AssertionError(f"not a line of the log: {line!r}; the next: {lines[-20:]}") from None
        return bool(data)


@asynccontextmanager
async def running(authority: Authority) -> AsyncIterator[tuple[Process, int]]:
    process = await trio.lowlevel.open_process(
        [*RINGFENCE, "ca", "serve", "--config", str(authority.config_file)], stderr=subprocess.PIPE
    )
    try:
        server = Process(process)
        yield server, (await server.logged("serving"))["port"]
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        assert process.stderr is not None
        await process.stderr.aclose()
