"""Places of a test's own: for pins, and for processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bpf import pins, preconditions
from bpf.pins import Pins
from tests.mesh_builder import LAB_NAME, wait_for


@contextmanager
def pin_root(name: str) -> Iterator[Path]:
    """A place for pins, not made yet; what a killed session left in it is removed first."""
    where = Path(f"/sys/fs/bpf/rf_{LAB_NAME}_{name}")
    _remove(where)
    yield where
    _remove(where)


def _remove(where: Path) -> None:
    for each in (Pins(where).staging, Pins(where).unloading, where):
        pins.remove_tree(each)


@contextmanager
def empty_cgroup(name: str) -> Iterator[Path]:
    """A cgroup, removed when its processes have ended."""
    where = preconditions.cgroup_root() / f"rf_{LAB_NAME}_{name}"
    where.mkdir(exist_ok=True)
    yield where
    wait_for("the cgroup to be empty", lambda: not (where / "cgroup.procs").read_text())
    where.rmdir()
