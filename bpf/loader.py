"""Load what the plan says, in place of what was loaded before: all of it or nothing.

    compile > lock > verify > pin into the other slot > file in the hooks' slots > switch

Everything that can fail happens in the slot that is not in force.  Then one
number is written (``state.active_slot``), which every dispatcher reads: before
it is the old version, after it the new one, whatever kills the loader.  What a
killed one has left lies in the slot that is not in force, and the next clears it.

A first version is put together beside, and moved into its place by one rename.

Maps are kept from version to version while maps.h and their shape are the same,
so that connections that are open keep their destinations.  The old version's
programs stay in their slot until the next load: a hook may be about to call one.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bpf import btf, preconditions, syscalls
from bpf import pins as pinned
from bpf.abi import abi
from bpf.compiler import SOURCE_DIR, Compiled, compile_sources, relocate
from bpf.errors import UnsupportedError
from bpf.pins import Pins, State
from bpf.plan import FEATURES, HOOKS, Feature, Hook
from bpf.syscalls import Map, MapType
from bpf.verified import Verified, verify

_MAX_FEATURES = 16
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What ``load`` did; ``off`` says why, by feature."""

    generation: int
    replaced: bool
    on: tuple[str, ...]
    off: Mapping[str, str]


def load(
    root: Path,
    *,
    features: Sequence[Feature] = FEATURES,
    directory: Path = SOURCE_DIR,
    kernel: tuple[int, int] | None = None,
    progress: Progress = lambda _step: None,
) -> Loaded:
    """Load into ``root``; ``progress`` is told each step before it is done.

    Raises:
        BpfError: nothing has changed.
    """
    preconditions.require_all(root)
    pins = Pins(root)
    progress("compile")
    dispatchers = compile_sources(("dispatch.c",), sorted({each.dispatcher for each in HOOKS}))
    kernel = kernel or preconditions.kernel_version()
    compiled: dict[str, Compiled] = {}
    lacking: dict[str, str] = {}
    for each in features:
        if kernel < each.min_kernel:
            continue
        try:
            numbers = btf.numbers(each.numbers)
        except UnsupportedError as error:
            lacking[each.name] = str(error)
            continue
        functions = [row.function for row in each.programs]
        compiled[each.name] = compile_sources(each.sources, functions, directory=directory, defines=numbers)
    with pinned.locked(pins), ExitStack() as stack:
        progress("look at what is loaded")
        state = pinned.open_state(pins)
        for leftover in (pins.staging, pins.unloading):
            pinned.remove_tree(leftover)
        if state is not None:
            stack.callback(state.close)
        before = None if state is None else State.read(state)
        kept = {} if before is None else _kept_maps(pins, before, stack)
        progress("verify")
        new = verify(features, compiled, lacking=lacking, kept=kept, kernel=kernel, stack=stack)
        loading = _Loading(new=new, dispatchers=dispatchers, progress=progress, stack=stack)
        if state is None or before is None:
            generation = loading.first(pins)
        else:
            generation = loading.replace(pins, state, before)
        progress("done")
    return Loaded(
        generation=generation, replaced=before is not None, on=tuple(each.name for each in new.on), off=new.off
    )


def _kept_maps(pins: Pins, before: State, stack: ExitStack) -> dict[str, int]:
    """The maps in force, if the structures in them are still the same."""
    if before.abi[before.active_slot] != abi().fingerprint:
        return {}
    directory = pins.slot(before.active_slot) / "maps"
    kept = {each.name: syscalls.open_pin(each) for each in directory.iterdir()}
    for fd in kept.values():
        stack.callback(os.close, fd)
    return kept


class _Loading:
    """Pins what was verified; ``stack`` closes what is opened on the way."""

    def __init__(self, *, new: Verified, dispatchers: Compiled, progress: Progress, stack: ExitStack) -> None:
        self._new = new
        self._dispatchers = dispatchers
        self._progress = progress
        self._stack = stack

    def first(self, pins: Pins) -> int:
        """Put a first version together beside its place, and move it there."""
        staging = Pins(pins.staging)
        self._progress("make the staging directory")
        for directory in (staging.root, staging.root / "hooks", staging.links):
            directory.mkdir(mode=0o700)
        state = Map(
            syscalls.create_map(
                type=MapType.ARRAY,
                key_bytes=4,
                value_bytes=abi().structs["loader_state"].size_bytes,
                max_entries=1,
                name=pinned.STATE_MAP_NAME,
            )
        )
        self._stack.callback(state.close)
        State(active_slot=0, abi=(abi().fingerprint, 0), generation=(1, 0)).write(state)
        self._progress("pin the state")
        syscalls.pin(state.fd, staging.state)
        self._pin_slot(staging, 0)
        self._file_in_hooks(staging, 0, state)
        self._progress("move into place")
        staging.root.rename(pins.root)
        return 1

    def replace(self, pins: Pins, state: Map, before: State) -> int:
        """Put the new version into the slot that is not in force, and switch."""
        slot = 1 - before.active_slot
        generation = before.generation[before.active_slot] + 1
        self._progress("clear the other slot")
        pinned.remove_tree(pins.slot(slot))
        self._pin_slot(pins, slot)
        self._file_in_hooks(pins, slot, state)
        described = (abi().fingerprint, generation)
        abis, generations = list(before.abi), list(before.generation)
        abis[slot], generations[slot] = described
        after = State(
            active_slot=before.active_slot, abi=(abis[0], abis[1]), generation=(generations[0], generations[1])
        )
        self._progress("describe the other slot")
        after.write(state)
        self._progress("switch")
        dataclasses.replace(after, active_slot=slot).write(state)
        return generation

    def _pin_slot(self, pins: Pins, slot: int) -> None:
        self._progress("make the slot")
        for directory in (pins.slot(slot), pins.slot(slot) / "maps", pins.slot(slot) / "programs"):
            directory.mkdir(mode=0o700)
        for name, fd in self._new.maps.items():
            self._progress(f"pin map {name}")
            syscalls.pin(fd, pins.map(slot, name))
        for function, fd in self._new.programs.items():
            self._progress(f"pin program {function}")
            syscalls.pin(fd, pins.program(slot, function))
        self._progress("pin the features")
        syscalls.pin(self._features(), pins.slot(slot) / pinned.FEATURES_MAP)

    def _features(self) -> int:
        """What is on, and what is off and why, for `ringfence bpf status`."""
        layout = abi().structs["feature_state"]
        fd = syscalls.create_map(
            type=MapType.ARRAY,
            key_bytes=4,
            value_bytes=layout.size_bytes,
            max_entries=_MAX_FEATURES,
            name="rf_features",
        )
        map_ = Map(fd)
        self._stack.callback(map_.close)
        rows = [(each.name, "") for each in self._new.on] + list(self._new.off.items())
        for index, (name, reason) in enumerate(rows):
            packed = layout.pack(
                on=int(not reason),
                name=name.encode()[: layout.members["name"].size_bytes - 1],
                reason=reason.encode()[: layout.members["reason"].size_bytes - 1],
            )
            map_.put(index.to_bytes(4, "little"), packed)
        return fd

    def _file_in_hooks(self, pins: Pins, slot: int, state: Map) -> None:
        """Let each hook's slot hold the new version's program, or nothing; make what hooks there are not yet."""
        programs = {row.hook: self._new.programs[row.function] for each in self._new.on for row in each.programs}
        for each in HOOKS:
            self._progress(f"hook {each.name}")
            path = pins.slots(each.name)
            is_new = not path.exists()
            if is_new and each.name not in programs:
                continue
            slots = Map(self._new_slots(each) if is_new else syscalls.open_pin(path))
            self._stack.callback(slots.close)
            if is_new:
                syscalls.pin(slots.fd, path)
            self._keep_dispatcher(pins, each, slots, state)
            key = slot.to_bytes(4, "little")
            if each.name in programs:
                slots.put(key, programs[each.name].to_bytes(4, "little"))
            else:
                slots.delete(key)

    def _new_slots(self, at: Hook) -> int:
        return syscalls.create_map(
            type=MapType.PROG_ARRAY, key_bytes=4, value_bytes=4, max_entries=2, name=f"rf_{at.name}"
        )

    def _keep_dispatcher(self, pins: Pins, at: Hook, slots: Map, state: Map) -> None:
        """Make the hook's dispatcher, or replace it where it is not ours of today (the links with it, one by one:
        the old one and the new one do the same)."""
        fd = syscalls.load_program(
            type=at.program_type,
            attach_type=at.attach_type,
            instructions=relocate(
                self._dispatchers.functions[at.dispatcher],
                self._dispatchers.descriptors,
                {"state": state.fd, "slots": slots.fd},
            ),
            name=f"rf_{at.name}",
        )
        self._stack.callback(os.close, fd)
        path = pins.dispatcher(at.name)
        if path.exists():
            there = syscalls.open_pin(path)
            self._stack.callback(os.close, there)
            if syscalls.program_info(there).tag == syscalls.program_info(fd).tag:
                return
            for link_path in sorted(pins.links.glob(f"*/{at.name}")):
                self._progress(f"update link {link_path.parent.name}/{at.name}")
                link = syscalls.open_pin(link_path)
                self._stack.callback(os.close, link)
                syscalls.update_link(link, program=fd)
        pinned.replace_pin(fd, path)
