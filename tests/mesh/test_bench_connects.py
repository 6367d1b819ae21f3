"""The measure of connects takes each way that it says, and leaves nothing behind, whatever ends it.

What is timed is a program in C that nothing else needs; here one in Python does the same.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bpf import preconditions
from tests.mesh_builder import wait_for

pytestmark = pytest.mark.mesh

_ROOT = Path(__file__).parents[2]
_CLIENT = """\
import json, os, socket, struct, sys
host, port, count, listener = sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), socket.socket(fileno=int(sys.argv[5]))
while os.read(0, 1):
    for _ in range(count):
        with socket.create_connection((host, port)) as client:
            listener.accept()[0].close()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    print(json.dumps({"p50_us": float(port)}), flush=True)
"""
_MEASURE = """\
import sys
from bench import connects

text = sys.argv.pop()

def made(directory):
    program = directory / "load"
    program.write_text("#!" + sys.executable + "\\n" + text)
    program.chmod(0o700)
    return program

connects.compile_load = made
connects.main()
"""


def _started(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", _MEASURE, *arguments, _CLIENT]
    return subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _left(pid: int) -> list[Path]:
    """What a measure with this process number has made, and is there still."""
    name = f"rfbench{pid}"
    places = [Path("/sys/fs/bpf") / name, preconditions.cgroup_root() / name, Path(tempfile.gettempdir()) / name]
    places += [Path("/run/netns") / f"{name}-{each}" for each in ("plain", "nat")]
    return [each for each in places if each.exists()]


@pytest.mark.parametrize("what", ["capture", "balancing"])
def test_each_way_is_taken_in_every_round_and_nothing_is_left(what: str) -> None:
    measure = _started(what, "--turns", "1")
    output, errors = measure.communicate(timeout=120)
    assert measure.returncode == 0, errors
    listener, cluster_ip = [15_001.0] * 5, [80.0] * 5  # the client tells the port that it was sent to as its time
    assert json.loads(output) == {
        "direct": {"connect_us": listener},
        "ringfence": {"connect_us": cluster_ip, "adds_us": [80.0 - 15_001.0] * 5},
        "iptables": {"connect_us": cluster_ip, "adds_us": [80.0 - 15_001.0] * 5},
    }
    assert _left(measure.pid) == []


def test_one_that_is_killed_leaves_nothing() -> None:
    measure = _started("capture", "--turns", "1000000")
    try:
        members = preconditions.cgroup_root() / f"rfbench{measure.pid}" / "cgroup.procs"
        wait_for("the client to be captured", lambda: (members.exists() and members.read_text()) or measure.poll())
        assert measure.poll() is None, measure.communicate()
        assert len(_left(measure.pid)) == 5
    finally:
        measure.kill()
        measure.communicate()
    wait_for("everything to be gone", lambda: not _left(measure.pid))


def test_what_can_not_be_measured_is_said() -> None:
    broken = subprocess.run(
        [sys.executable, "-c", _MEASURE, "capture", "--turns", "1", "raise SystemExit('no such luck')"],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert broken.returncode == 1
    assert broken.stderr.startswith("bench.connects capture: direct: no such luck")
