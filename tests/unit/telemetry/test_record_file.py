"""The file of access records: whole lines, rotated by us or by others, shared by processes, on a disk that fills up."""

import os
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from node_agent.telemetry.line_writer import LineWriter
from node_agent.telemetry.record_file import RecordFile

ROOT: Final = Path(__file__).parents[3]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "access.log"


@contextmanager
def small_disk() -> Iterator[None]:
    """No file of this process may grow past 4096 bytes: a write is cut short, then fails, as on a full disk.

    pytest's own output may be such a file: nothing may be reported before the end.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def opened(path: Path, *, rotate_bytes: int = 0, keep_files: int = 3) -> RecordFile:
    return RecordFile(path, rotate_bytes=rotate_bytes, keep_files=keep_files)


def test_it_is_made_for_root_and_a_group_whatever_the_umask(path: Path) -> None:
    before = os.umask(0o077)
    try:
        opened(path).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_one_that_is_there_keeps_its_mode_and_what_is_in_it(path: Path) -> None:
    path.write_text("before\n")
    path.chmod(0o600)
    file = opened(path)
    file.write(b"after\n")
    file.close()
    assert path.read_text() == "before\nafter\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_it_is_renamed_before_it_grows_too_big_and_the_oldest_goes(path: Path) -> None:
    file = opened(path, rotate_bytes=25, keep_files=2)
    for number in range(10):
        file.write(b"record %d\n" % number)  # two fit
    file.close()
    assert path.read_text() == "record 8\nrecord 9\n"
    assert path.with_name("access.log.1").read_text() == "record 6\nrecord 7\n"
    assert path.with_name("access.log.2").read_text() == "record 4\nrecord 5\n"
    assert len(list(path.parent.iterdir())) == 2 + 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_with_nothing_to_keep_it_is_emptied(path: Path) -> None:
    file = opened(path, rotate_bytes=25, keep_files=0)
    for number in range(5):
        file.write(b"record %d\n" % number)
    file.close()
    assert path.read_text() == "record 4\n"
    assert list(path.parent.iterdir()) == [path]


def test_a_line_longer_than_the_bound_is_whole_in_a_file_of_its_own(path: Path) -> None:
    file = opened(path, rotate_bytes=10)
    file.write(b"x" * 100 + b"\n")
    file.write(b"y\n")
    file.close()
    assert path.read_text() == "y\n"
    assert path.with_name("access.log.1").read_text() == "x" * 100 + "\n"


@pytest.mark.parametrize("how", ["renamed", "removed", "copied and truncated"])
def test_others_may_rotate_it_too(path: Path, how: str) -> None:
    file = opened(path)
    file.write(b"one\n")
    elsewhere = path.with_name("elsewhere")
    if how == "renamed":
        path.rename(elsewhere)
    elif how == "removed":
        path.unlink()
    else:
        elsewhere.write_bytes(path.read_bytes())
        os.truncate(path, 0)
    file.write(b"two\n")
    file.close()
    assert path.read_text() == "two\n"
    if how != "removed":
        assert elsewhere.read_text() == "one\n"


def test_asked_to_refresh_it_lets_go_of_the_old_file_at_once(path: Path) -> None:
    file = opened(path)
    writer = LineWriter(file)
    writer.write(b"one\n")
    path.rename(path.with_name("old"))
    writer.refresh()
    writer.close(10)
    held = {
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    }
    assert str(path) in held
    assert str(path.with_name("old")) not in held
    file.close()


def test_a_full_disk_costs_whole_lines_which_are_counted_and_the_next_ones_come_when_there_is_room(path: Path) -> None:
    file = opened(path)
    writer = LineWriter(file)
    writer.close(10)  # from now on it writes at once
    line = b"x" * 999 + b"\n"
    with small_disk():
        for _ in range(4):
            writer.write(line)
        for _ in range(3):
            writer.write(line)  # 96 bytes of the first one fit
    assert writer.dropped_lines == 3
    assert path.read_bytes() == line * 4
    os.truncate(path, 0)
    writer.write(line)
    assert path.read_bytes() == line
    assert writer.dropped_lines == 3
    file.close()


def test_a_directory_that_went_away_costs_lines_not_the_agent(path: Path) -> None:
    home = path.parent / "log"
    home.mkdir()
    file = opened(home / "access.log")
    writer = LineWriter(file)
    writer.close(10)
    (home / "access.log").unlink()
    home.rmdir()
    writer.write(b"lost\n")
    writer.refresh()
    assert writer.dropped_lines == 1
    home.mkdir()
    writer.write(b"found\n")
    assert (home / "access.log").read_text() == "found\n"
    file.close()


@pytest.mark.parametrize("kind", ["directory", "fifo", "link", "nowhere", "device"])
def test_what_is_no_file_is_refused_at_once(path: Path, kind: str) -> None:
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/etc/passwd")
    elif kind == "nowhere":
        path = path / "access.log"
    else:
        path = Path("/dev/full")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match=str(path.name)):
        opened(path)
    assert len(os.listdir("/proc/self/fd")) == before


_WRITES: Final = """
import sys
from pathlib import Path
from node_agent.telemetry.line_writer import LineWriter
from node_agent.telemetry.record_file import RecordFile
writer = LineWriter(RecordFile(Path(sys.argv[1]), rotate_bytes=20_000, keep_files=1000))
writer.close(30)  # from now on it writes each line by itself
for number in range(2000):
    writer.write(b"%s %d %s\\n" % (sys.argv[2].encode(), number, b"x" * 50))
assert not writer.dropped_lines
"""


def test_processes_that_share_it_neither_mix_nor_lose_lines_while_it_is_rotated(path: Path) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", _WRITES, str(path), name], cwd=ROOT) for name in "abc"]
    for process in processes:
        assert process.wait(60) == 0
    files = sorted(path.parent.iterdir(), key=lambda each: int(each.suffix[1:]) if each.suffix != ".log" else 0)
    assert len(files) > 10
    lines = [line for file in reversed(files) for line in file.read_text().splitlines()]
    for name in "abc":
        mine = [line.split() for line in lines if line.startswith(f"{name} ")]
        assert [int(number) for _, number, _ in mine] == list(range(2000)), "in order, each once"
        assert {filler for _, _, filler in mine} == {"x" * 50}
    assert len(lines) == 6000
