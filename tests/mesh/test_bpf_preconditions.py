"""What a machine must have to load BPF: each thing that is missing or odd is named, with what to do."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from bpf import preconditions, syscalls
from bpf.errors import BpfError
from tests.mesh_builder import LAB_NAME, ROOT
from tests.pin_places import empty_cgroup, pin_root

pytestmark = pytest.mark.mesh

_RINGFENCE: Final = str(ROOT / ".venv/bin/ringfence")


@pytest.fixture
def root() -> Iterator[Path]:
    with pin_root("preconditions") as where:
        yield where


@pytest.fixture
def cgroup() -> Iterator[Path]:
    with empty_cgroup("preconditions") as where:
        yield where


def _elsewhere(*prepare: str) -> subprocess.CompletedProcess[str]:
    """Load in a mount namespace of its own, after ``prepare``."""
    script = "; ".join(("set -e", *prepare, f"exec {_RINGFENCE} bpf load --pins /sys/fs/bpf/rf_{LAB_NAME}_elsewhere"))
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (["umount /sys/fs/bpf"], "mount -t bpf bpf /sys/fs/bpf"),
        ([f"umount {preconditions.cgroup_root()}"], "mount -t cgroup2 cgroup2"),
        (
            ["mount -t tmpfs none $(dirname $(readlink -f /usr/lib/python3/dist-packages/bcc/__init__.py))"],
            "install python3-bpfcc",
        ),
        (["mount --bind -o ro /sys/fs/bpf /sys/fs/bpf"], "/sys/fs/bpf is mounted read-only"),
    ],
    ids=["no-bpffs", "no-cgroup-v2", "no-bcc", "read-only"],
)
def test_what_the_machine_lacks_is_named_with_its_remedy(prepare: list[str], said: str) -> None:
    done = _elsewhere(*prepare)

    assert done.returncode == 1, done
    assert done.stderr.startswith("ringfence: ")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("/sys/fs/bpf/not_there/ringfence", "/sys/fs/bpf/not_there is not there; make it"),
        ("/sys/fs/bpf/ring.fence", "no names with dots (ring.fence)"),
        ("/tmp/ringfence", "/tmp is not on a BPF file system"),
    ],
    ids=["no-parent", "dots", "another-file-system"],
)
@pytest.mark.parametrize("command", ["load", "status"])
def test_a_place_that_can_not_be_is_refused_with_what_to_do(where: str, said: str, command: str) -> None:
    done = subprocess.run(
        [_RINGFENCE, "bpf", command, "--pins", where], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 1
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_pin_of_somebody_else_in_our_place_is_left_alone(root: Path) -> None:
    fd = syscalls.create_map(type=syscalls.MapType.ARRAY, key_bytes=4, value_bytes=4, max_entries=1, name="foreign")
    syscalls.pin(fd, root)
    os.close(fd)
    try:
        for command in ("load", "unload", "status"):
            done = subprocess.run(
                [_RINGFENCE, "bpf", command, "--pins", str(root)], capture_output=True, text=True, check=False
            )
            assert done.returncode == 1
            assert "choose another" in done.stdout + done.stderr
        assert root.is_file()
    finally:
        root.unlink()


def test_a_mount_with_a_space_and_one_of_a_container_are_known(tmp_path: Path, cgroup: Path) -> None:
    node = preconditions.cgroup_root()
    odd = tmp_path / "odd place"
    odd.symlink_to(node)
    mounts = tmp_path / "mounts"
    escaped = str(odd).replace(" ", "\\040")
    mounts.write_text(f"none {cgroup} cgroup2 rw 0 0\nnone {escaped} cgroup2 rw 0 0\n")
    assert preconditions.node_cgroup_root(mounts) == odd, "what is the node's, wherever it is"

    mounts.write_text(f"none {cgroup} cgroup2 rw 0 0\n")
    assert preconditions.cgroup_root(mounts) == cgroup
    with pytest.raises(BpfError, match="the part of a container, and the pods are outside of it"):
        preconditions.node_cgroup_root(mounts)


def test_who_is_not_root_is_told_so() -> None:
    command = ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-c"]
    command += ["from pathlib import Path; from bpf.loader import load; load(Path('/sys/fs/bpf/x'))"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)

    assert done.returncode == 1
    assert "not permitted to use BPF: run this as root" in done.stderr
