"""Give compiled features to the kernel: maps, and programs that the verifier has accepted; nothing is pinned yet."""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from bpf import syscalls
from bpf.abi import abi
from bpf.compiler import Compiled, relocate
from bpf.errors import BpfError, UnsupportedError, VerifierRefusal
from bpf.plan import Feature, Hook, MapRow, hook
from bpf.syscalls import MapInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """Maps and programs of the new version, as open descriptors; not pinned yet."""

    maps: Mapping[str, int]
    programs: Mapping[str, int]  # by function
    on: tuple[Feature, ...]
    off: Mapping[str, str]


def verify(
    features: Sequence[Feature],
    compiled: Mapping[str, Compiled],
    *,
    lacking: Mapping[str, str],
    kept: Mapping[str, int],
    kernel: tuple[int, int],
    stack: ExitStack,
) -> Verified:
    """Make the maps that are not ``kept``, and load every program; ``stack`` closes what is made.

    A feature that is not ``compiled``, or that the kernel does not know, is off; ``lacking`` says why, if it is
    not the kernel's version.

    Raises:
        VerifierRefusal: with the log.
        BpfError: the plan and the sources do not agree.
    """
    maps: dict[str, int] = {}
    programs: dict[str, int] = {}
    on: list[Feature] = []
    off: dict[str, str] = {}
    for feature in features:
        if feature.name in lacking:
            off[feature.name] = lacking[feature.name]
            continue
        if feature.name not in compiled:
            has, needs = (".".join(map(str, version)) for version in (kernel, feature.min_kernel))
            off[feature.name] = f"needs Linux {needs} ({feature.needs}), this is {has}"
            continue
        unit = compiled[feature.name]
        try:
            for name, info in unit.maps.items():
                if name not in maps:
                    maps[name] = _map(feature, name, info, kept, stack)
            for row in feature.programs:
                programs[row.function] = _program(row.function, hook(row.hook), unit, maps)
                stack.callback(os.close, programs[row.function])
        except UnsupportedError as error:
            off[feature.name] = str(error)
            for row in feature.programs:
                programs.pop(row.function, None)
        except VerifierRefusal as error:
            raise VerifierRefusal(f"feature {feature.name}: {error}; nothing was changed", log=error.log) from error
        else:
            on.append(feature)
    return Verified(maps=maps, programs=programs, on=tuple(on), off=off)


def _map(feature: Feature, name: str, info: MapInfo, kept: Mapping[str, int], stack: ExitStack) -> int:
    row = next((each for each in feature.maps if each.name == name), None)
    if row is None:
        raise BpfError(f"bpf/plan.py: feature {feature.name} has no row for the map {name} of its sources")
    _check_layout(row, info)
    wanted = replace(info, type=row.type or info.type, value_bytes=row.value_bytes or info.value_bytes)
    if name in kept:
        there = syscalls.map_info(kept[name])
        if replace(there, id=0, name="") == replace(wanted, id=0, name=""):
            return kept[name]
    try:
        fd = syscalls.create_map(
            type=wanted.type,
            key_bytes=wanted.key_bytes,
            value_bytes=wanted.value_bytes,
            max_entries=wanted.max_entries,
            flags=wanted.flags,
            name=name,
        )
    except OSError as error:
        raise UnsupportedError(f"the kernel does not make the map {name}: {error.strerror}") from error
    stack.callback(os.close, fd)
    return fd


def _check_layout(row: MapRow, info: MapInfo) -> None:
    """The compiler and ``bpf.abi`` have read the same maps.h; they must have understood the same."""
    for what, struct, size in (("key", row.key, info.key_bytes), ("value", row.value, info.value_bytes)):
        if struct is not None and abi().structs[struct].size_bytes != size:
            raise BpfError(
                f"map {row.name}: its {what}, struct {struct}, has {size} bytes for the compiler and "
                f"{abi().structs[struct].size_bytes} for bpf/abi.py; this is a bug"
            )


def _program(function: str, at: Hook, unit: Compiled, maps: Mapping[str, int]) -> int:
    return syscalls.load_program(
        type=at.program_type,
        attach_type=at.attach_type,
        instructions=relocate(unit.functions[function], unit.descriptors, maps),
        name=function,
    )
