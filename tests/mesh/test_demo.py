"""The README's first command: it holds, it reads well in a log, and it leaves nothing behind."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.mesh_builder import LAB_NAME, ROOT

pytestmark = pytest.mark.mesh

DEMO: Final = str(ROOT / "scripts" / "demo")
LAB: Final = f"{LAB_NAME[:8]}demo"  # its own lab: the one of this session and a user's are left alone
STATE_DIR: Final = Path(f"/run/ringfence-lab-{LAB}")


@pytest.fixture(autouse=True)
def no_lab_is_left() -> Iterator[None]:
    yield
    left = leftovers()
    subprocess.run(
        [str(ROOT / "scripts/lab"), "down"],
        env={**os.environ, "RINGFENCE_LAB": LAB},
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert left == []


def leftovers() -> list[str]:
    """What a lab of that name consists of: namespaces, the state directory, processes in them."""
    found = [str(path) for path in Path("/run/netns").glob(f"rf_{LAB}-*")]
    if STATE_DIR.exists():
        found.append(str(STATE_DIR))
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(STATE_DIR) in command:
            found.append(command)
    return found


def test_every_fact_holds_in_plain_text_within_a_minute() -> None:
    done = subprocess.run([DEMO, "--lab", LAB], capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout
    assert "FAILED" not in done.stdout
    total = re.search(r"^All (\d+) facts held, measured in this run, in [\d.]+ s\.$", done.stdout, re.MULTILINE)
    assert total is not None
    assert int(total[1]) == len(re.findall(r"^   ok   ", done.stdout, re.MULTILINE)) >= 30
    assert done.stderr == ""


def test_interrupted_demo_takes_its_lab_down() -> None:
    # A shell starts what it runs in the background with SIGINT ignored, and the suite may be such.
    command = ["env", "--default-signal=INT", DEMO, "--lab", LAB]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("1. "):
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)

    assert process.returncode == 130
    assert errors == "demo: interrupted, taking the lab down\n"


def test_the_readmes_example_does_what_it_says() -> None:
    text = (ROOT / "README.md").read_text()
    commands = text.split("## Try it yourself")[1].split("```sh\n")[1].split("```")[0]

    done = subprocess.run(
        ["bash", "-e", "-c", commands],
        cwd=ROOT,
        env={**os.environ, "RINGFENCE_LAB": LAB},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "OK\n" in done.stdout
    record = json.loads(next(line for line in done.stdout.splitlines() if '"close_reason"' in line))
    assert record["source_identity"] == "spiffe://cluster.local/ns/default/sa/cart"
    assert record["destination_identity"] == "spiffe://cluster.local/ns/default/sa/store"
    assert record["connection_security_policy"] == "mutual_tls"
    assert record["close_reason"] == "ok"


def test_wrong_arguments_change_nothing() -> None:
    done = subprocess.run([DEMO, "--lab", "no such"], capture_output=True, text=True, timeout=30, check=False)

    assert done.returncode == 2
    assert "1 to 12 of a-z and 0-9" in done.stderr


def test_colour_on_a_terminal_only() -> None:
    from demokit.screen import Screen

    screen = Screen(sys.stdout, colour=True)
    assert screen._painted("ok", "32") == "\x1b[32mok\x1b[0m"
    assert Screen(sys.stdout, colour=False)._painted("ok", "32") == "ok"
