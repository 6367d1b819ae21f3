"""What is loaded, as ``ringfence bpf status`` shows it; also why nothing is."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bpf import pins as pinned
from bpf import preconditions, syscalls
from bpf.abi import abi
from bpf.errors import BpfError
from bpf.pins import Pins, State, cgroup_links
from bpf.plan import HOOKS
from bpf.syscalls import AttachType, Map, MapType

_COUNTED = frozenset({MapType.HASH, MapType.SOCKHASH})


def collect(root: Path) -> dict[str, Any]:
    """Everything, as JSON values; raises BpfError when it cannot even be looked at."""
    preconditions.require_bpf()
    pins = Pins(root)
    found: dict[str, Any] = {
        "pins": str(root),
        "loaded": False,
        "problem": None,
        "generation": None,
        "in_use": False,
        "features": [],
        "hooks": [],
        "maps": [],
        "links": [],
    }
    try:
        preconditions.require_all(root)
        state = pinned.open_state(pins)
    except BpfError as error:
        return found | {"problem": str(error)}
    if state is None:
        left = next((each for each in (pins.staging, pins.unloading) if each.exists()), None)
        what = "nothing is loaded" if left is None else f"a load or unload was interrupted and left {left}"
        return found | {"problem": f"{what}; run `ringfence bpf load`"}
    try:
        now = State.read(state)
    finally:
        state.close()
    slot = now.active_slot
    is_ours = now.abi[slot] == abi().fingerprint
    return found | {
        "loaded": True,
        "problem": None if is_ours else "loaded by another version of ringfence; run `ringfence bpf load`",
        "generation": now.generation[slot],
        "in_use": pinned.in_use(pins),
        "features": list(_features(pins, slot)),
        "hooks": [each.name for each in HOOKS if pins.dispatcher(each.name).exists()],
        "maps": list(_maps(pins, slot)),
        "links": list(_links(pins)),
    }


def attached(root: Path, namespace: str, name: str) -> int | None:
    """The number of the cgroup at which every hook of a Workload is; None if they are not, or not all at one."""
    directory = Pins(root).links / cgroup_links(namespace, name)
    try:
        numbers = {each["cgroup_id"] for each in _links(Pins(root)) if each["workload"] == directory.name}
    except OSError:
        return None  # it is being attached
    return numbers.pop() if len(numbers) == 1 else None


def _features(pins: Pins, slot: int) -> Iterator[dict[str, Any]]:
    layout = abi().structs["feature_state"]
    map_ = Map(syscalls.open_pin(pins.slot(slot) / pinned.FEATURES_MAP))
    try:
        for key in map_:
            raw = map_.get(key) or b""
            name = layout.bytes_of(raw, "name").rstrip(b"\0").decode(errors="replace")
            reason = layout.bytes_of(raw, "reason").rstrip(b"\0").decode(errors="replace")
            if name:
                yield {"name": name, "on": bool(layout.number(raw, "on")), "reason": reason or None}
    finally:
        map_.close()


def _maps(pins: Pins, slot: int) -> Iterator[dict[str, Any]]:
    for path in sorted((pins.slot(slot) / "maps").iterdir()):
        map_ = Map(syscalls.open_pin(path))
        try:
            entries = sum(1 for _ in map_) if map_.info.type in _COUNTED else None
            yield {"name": path.name, "entries": entries, "max_entries": map_.info.max_entries}
        finally:
            map_.close()


def _links(pins: Pins) -> Iterator[dict[str, Any]]:
    for path in sorted(pins.links.glob("*/*")):
        fd = syscalls.open_pin(path)
        try:
            info = syscalls.link_info(fd)
        finally:
            os.close(fd)
        is_attached = bool(info.cgroup_id or info.netns_inode or info.interface)  # its target is there
        yield {
            "workload": path.parent.name,
            "hook": path.name,
            "cgroup_id": info.cgroup_id or None,
            "attached": is_attached,
            "attach_type": AttachType(info.attach_type).name.lower() if is_attached else None,
        }
