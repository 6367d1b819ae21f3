"""What the agent asks of the kernel for its own process."""

import subprocess
import sys

import pytest
import trio
from trio.testing import MockClock

from node_agent import process
from node_agent.process import Mapping, is_clean_copy, parse_smaps

_SMAPS = """\
7f01-7f03 r-xp 00001000 fe:00 11     /usr/lib/with a space.so (deleted)
Rss:                   8 kB
Anonymous:             0 kB
AnonHugePages:         0 kB
Swap:                  0 kB
SwapPss:               0 kB
VmFlags: rd ex mr mw me
7f03-7f04 r--p 00000000 fe:00 11     /usr/lib/filled_in.so
Anonymous:             4 kB
Swap:                  8 kB
7f04-7f05 rw-p 00000000 00:00 0
Anonymous:             4 kB
Swap:                  0 kB
7f05-7f06 r--p 00000000 fe:00 11     /usr/lib/not_told.so
Anonymous:             0 kB
"""


def test_mappings_are_read_with_what_changed_in_them() -> None:
    assert list(parse_smaps(_SMAPS.splitlines())) == [
        Mapping(0x7F01, 0x7F03, "r-xp", "/usr/lib/with a space.so (deleted)", 0),
        Mapping(0x7F03, 0x7F04, "r--p", "/usr/lib/filled_in.so", 12),
    ]


@pytest.mark.parametrize(
    ("permissions", "path", "changed_kb", "is_clean"),
    [
        ("r-xp", "/usr/lib/a.so", 0, True),
        ("r--p", "/usr/lib/a.so", 0, True),
        ("r--p", "/usr/lib/a.so", 4, False),  # the dynamic linker's work is in no file
        ("rw-p", "/usr/lib/a.so", 0, False),
        ("r--s", "/usr/lib/a.so", 0, False),
        ("r-xp", "[vdso]", 0, False),
        ("r--p", "/memfd:secret (deleted)", 0, False),
        ("r--p", "/dev/zero", 0, False),
    ],
)
def test_only_what_the_file_still_has_is_let_go_of(
    permissions: str, path: str, changed_kb: int, is_clean: bool
) -> None:
    assert is_clean_copy(Mapping(0x1000, 0x2000, permissions, path, changed_kb)) is is_clean


_PROGRAM = """
import ssl
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from node_agent import process


def of_files_kb():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssFile:"))


def use():
    ec.generate_private_key(ec.SECP256R1()).public_key()
    ssl.create_default_context()


use()
before = of_files_kb()
process.let_go_of_libraries()
after = of_files_kb()
use()
process.let_go_of_libraries()
use()
assert after < before / 2, (before, after)
print("fine")
"""


def test_libraries_work_as_before_after_they_were_let_go_of() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=False, timeout=120)
    assert (done.stdout, done.stderr, done.returncode) == ("fine\n", "", 0)


def test_the_agent_slims_down_when_it_is_ready_and_after_certificates_were_issued(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ready_from, slimmed_at, tidied_at = 100.0, [], []
    monkeypatch.setattr(process, "tidy_up", lambda: tidied_at.append(trio.current_time()))
    monkeypatch.setattr(process, "let_go_of_libraries", lambda: slimmed_at.append(trio.current_time()))

    async def story() -> None:
        slim_down = process.SlimDown()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(slim_down.run, lambda: trio.current_time() >= ready_from)
            await trio.sleep(1000)
            slim_down.issued()
            await trio.sleep(1)
            slim_down.issued()  # with the others
            await trio.sleep(1000)
            nursery.cancel_scope.cancel()

    trio.run(story, clock=MockClock(autojump_threshold=0))

    first, second = slimmed_at
    assert tidied_at == [first]  # with many connections that takes too long
    assert ready_from <= first < ready_from + 1
    assert 1001 < second < 1100
