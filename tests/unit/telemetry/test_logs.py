"""Log lines never make the agent wait, and none is lost at a normal exit."""

import errno
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final

import pytest

from node_agent.cli.log_level import LOG_LEVELS
from node_agent.errors import ConfigError
from node_agent.telemetry.line_writer import Descriptor, LineWriter
from node_agent.telemetry.log_levels import LEVELS, LogLevels, apply
from node_agent.telemetry.logs import JsonFormatter, Logging

_PROGRAM: Final = """
import logging, sys
from node_agent.telemetry.logs import configure_logging
configure_logging("info")
access = logging.getLogger("ringfence.access")
for number in range(5000):
    access.info("record %d", number)
logging.getLogger("ringfence.x").debug("hidden")
logging.getLogger("ringfence.x").warning("shown \\n \\x1b")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("ringfence.x").exception("failed")
"""


def run_program(*, stdout: int, stderr: int) -> "subprocess.CompletedProcess[bytes]":
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", _PROGRAM]
    return subprocess.run(command, cwd=root, check=True, timeout=120, stdout=stdout, stderr=stderr)


def test_at_exit_every_access_record_is_on_stdout_and_the_rest_on_stderr() -> None:
    done = run_program(stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    assert done.stdout.decode().splitlines() == [f"record {number}" for number in range(5000)]
    warning, error = map(json.loads, done.stderr.splitlines())
    assert (warning["level"], warning["logger"], warning["message"]) == ("warning", "ringfence.x", "shown \n \x1b")
    assert "ZeroDivisionError" in error["exception"]
    assert b"\x1b" not in done.stderr


def test_one_file_for_both_streams_gets_whole_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        run_program(stdout=file.fileno(), stderr=file.fileno())

    lines = log.read_text().splitlines()
    assert [line for line in lines if line.startswith("record")] == [f"record {number}" for number in range(5000)]
    assert len(lines) == 5002


def test_a_reader_that_stalls_costs_lines_not_time_and_they_are_counted() -> None:
    reader, writer = os.pipe()
    lines = LineWriter(Descriptor(writer), max_queued_bytes=1000 * 100)
    line = b"x" * 99 + b"\n"
    for _ in range(20_000):  # 2 MB into a pipe of 64 KiB that nobody reads
        lines.write(line)
    dropped = lines.dropped_lines
    assert dropped > 15_000

    received = bytearray()
    drain = threading.Thread(target=lambda: received.extend(_read_all(reader)))
    drain.start()
    lines.close(10)
    os.close(writer)
    drain.join(60)
    os.close(reader)
    assert len(received) == (20_000 - dropped) * len(line)
    assert lines.dropped_lines == dropped


def test_a_closed_pipe_is_counted_not_raised() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    lines = LineWriter(Descriptor(writer))
    lines.write(b"one\n")
    lines.close(10)
    lines.write(b"two\n")
    os.close(writer)
    assert lines.dropped_lines == 2
    assert Logging({"stdout": lines}).problems() == ["lines to stdout are being lost: Broken pipe"]


def test_lines_that_are_written_again_end_the_problem() -> None:
    class Disk:
        is_full = True

        def write(self, _chunk: bytes) -> None:
            if self.is_full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def refresh(self) -> None:
            """Nothing is moved."""

    disk = Disk()
    lines = LineWriter(disk)
    lines.close(10)
    logging_ = Logging({"stdout": lines, "file": lines})
    assert logging_.problems() == []
    lines.write(b"one\n")
    assert logging_.problems() == [
        f"lines to {where} are being lost: No space left on device" for where in ("stdout", "the file of [access_log]")
    ]
    disk.is_full = False
    lines.write(b"two\n")
    assert logging_.problems() == []


def test_closing_gives_up_on_a_stalled_reader() -> None:
    reader, writer = os.pipe()
    lines = LineWriter(Descriptor(writer))
    lines.write(b"x" * 1_000_000)
    lines.close(0.05)
    assert threading.active_count() > 1
    os.close(reader)  # lets the thread end: the write fails
    lines._thread.join(60)
    os.close(writer)
    assert not lines._thread.is_alive()


def test_an_unknown_level_is_refused_with_the_known_ones() -> None:
    before = logging.getLogger().level
    with pytest.raises(ConfigError, match=r"'loud' is unknown; use one of debug, info, warning, error"):
        apply(LogLevels(level="loud"))
    assert logging.getLogger().level == before


def test_the_command_line_offers_the_levels_that_exist() -> None:
    assert LOG_LEVELS == LEVELS


def test_a_line_is_ascii_json_whatever_the_message() -> None:
    record = logging.LogRecord("ringfence.x", logging.ERROR, "", 0, "caf\xe9 \u202e %s", ("\n",), None)
    text = JsonFormatter().format(record)
    assert text.isascii()
    assert json.loads(text)["message"] == "caf\xe9 \u202e \n"


def _read_all(fd: int) -> bytes:
    data = bytearray()
    while chunk := os.read(fd, 65536):
        data += chunk
    return bytes(data)
