"""Where things are pinned, who may change them, and whether they are ours.

    /sys/fs/bpf/ringfence/
        state                    map: which slot is in force (maps.h, loader_state)
        hooks/HOOK-dispatcher    program: what is attached; calls slots[active_slot]
        hooks/HOOK-slots         map: the program of each slot
        slot0/ slot1/            maps/NAME, programs/FUNCTION: a whole version each
        links/WORKLOAD/HOOK      link: HOOK's dispatcher at a cgroup; made by the agent

Names have no dots: bpffs keeps those for itself.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bpf import syscalls
from bpf.abi import abi
from bpf.errors import BpfError
from bpf.syscalls import Map

DEFAULT_PINS: Final = Path("/sys/fs/bpf/ringfence")
STATE_MAP_NAME: Final = "rf_state"  # of the map itself: how we know what is ours
FEATURES_MAP: Final = "features"
_FIRST: Final = (0).to_bytes(4, "little")
CGROUP_LINKS: Final = "cgroup-"
_KNOWN: Final = frozenset({"state", "hooks", "slot0", "slot1", "links"})


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """``loader_state`` as of one moment."""

    active_slot: int
    abi: tuple[int, int]
    generation: tuple[int, int]

    @classmethod
    def read(cls, map_: Map) -> "State":
        raw = map_.get(_FIRST)
        assert raw is not None
        layout = abi().structs["loader_state"]
        return cls(
            active_slot=layout.number(raw, "active_slot"),
            abi=(layout.number(raw, "abi", 0), layout.number(raw, "abi", 1)),
            generation=(layout.number(raw, "generation", 0), layout.number(raw, "generation", 1)),
        )

    def write(self, map_: Map) -> None:
        packed = (
            abi().structs["loader_state"].pack(active_slot=self.active_slot, abi=self.abi, generation=self.generation)
        )
        map_.put(_FIRST, packed)


@dataclass(frozen=True, slots=True)
class Pins:
    """The paths below one root."""

    root: Path

    @property
    def staging(self) -> Path:
        """Where a first version is put together."""
        return self.root.with_name(f"{self.root.name}_staging")

    @property
    def unloading(self) -> Path:
        """Where the root is moved to be taken apart."""
        return self.root.with_name(f"{self.root.name}_unloading")

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def links(self) -> Path:
        return self.root / "links"

    def dispatcher(self, hook: str) -> Path:
        return self.root / "hooks" / f"{hook}-dispatcher"

    def slots(self, hook: str) -> Path:
        return self.root / "hooks" / f"{hook}-slots"

    def slot(self, number: int) -> Path:
        return self.root / f"slot{number}"

    def map(self, slot: int, name: str) -> Path:
        return self.slot(slot) / "maps" / name

    def program(self, slot: int, function: str) -> Path:
        return self.slot(slot) / "programs" / function


def cgroup_links(namespace: str, name: str) -> str:
    """The directory, below ``links``, of a workload that is a cgroup.  Without dots, which bpffs keeps for itself."""
    return f"{CGROUP_LINKS}{namespace}_{name}".replace(".", "%2e")


def open_state(pins: Pins) -> Map | None:
    """The state of what is loaded; None if nothing is.

    Raises:
        BpfError: what is there is not ours, or another version's.
    """
    try:
        found = sorted(each.name for each in pins.root.iterdir())
    except FileNotFoundError:
        return None
    except OSError as error:
        remedy = "run this as root" if os.geteuid() else "choose another directory with --pins and [capture] pins"
        raise BpfError(f"{pins.root}: cannot be read: {error.strerror}; {remedy}") from error
    foreign = [name for name in found if name not in _KNOWN]
    try:
        if foreign:
            raise BpfError("")
        map_ = Map(syscalls.open_pin(pins.state))
    except (OSError, BpfError) as error:
        what = f"it holds {', '.join(foreign or found) or 'nothing'}"
        raise BpfError(
            f"{pins.root} is not ringfence's ({what}); nothing was touched: remove it, or choose another directory "
            "with --pins and [capture] pins"
        ) from error
    if map_.info.name != STATE_MAP_NAME or map_.info.value_bytes != abi().structs["loader_state"].size_bytes:
        map_.close()
        raise BpfError(
            f"{pins.state} is the map {map_.info.name or 'without a name'!r}, not {STATE_MAP_NAME} of this version; "
            "nothing was touched: unload it with the version that loaded it, or choose another directory with --pins"
        )
    return map_


@contextmanager
def locked(pins: Pins) -> Iterator[None]:
    """One at a time changes what is pinned; the lock ends with its holder, however that ends.

    It is the file system's root that is locked: the pins' own directory comes and goes.
    """
    fd = os.open(pins.root.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def use(pins: Pins) -> int:
    """Say that a running agent uses what is pinned, as long as the returned descriptor is open; raises OSError."""
    fd = os.open(pins.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return fd


def in_use(pins: Pins) -> bool:
    """Whether an agent does."""
    fd = os.open(pins.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def remove_tree(path: Path) -> None:
    """Unpin everything below; what is not there is fine."""
    try:
        entries = list(path.iterdir())
    except FileNotFoundError:
        return
    for each in entries:
        if each.is_dir():
            remove_tree(each)
        else:
            each.unlink(missing_ok=True)
    path.rmdir()


def replace_pin(fd: int, path: Path) -> None:
    """Pin in the place of what may be there: one or the other is, at every moment."""
    new = path.with_name(f"{path.name}-new")
    new.unlink(missing_ok=True)
    syscalls.pin(fd, new)
    new.rename(path)
