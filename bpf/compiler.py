"""The one door to bcc: C text in, instructions and map shapes out.

bcc only compiles.  It also makes maps of its own on the way, which end with
``Compiled.close``; the loader makes the real ones, replaces the descriptors in
the instructions, and gives the programs to the kernel itself, because it wants
the verifier's log and because several features share maps.
"""

import ctypes
import os
import re
import struct
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from bpf.errors import BpfError
from bpf.syscalls import MapInfo, map_info

SOURCE_DIR: Final = Path(__file__).parent
NO_DEFINES: Final[Mapping[str, int]] = MappingProxyType({})
_HEADERS: Final = SOURCE_DIR / "headers"
_WARNINGS: Final = ("-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wsign-compare", "-Wimplicit-fallthrough")
_NOT_WARNINGS: Final = ("-Wsign-conversion", "-Wunused-parameter")
# What a header offers need not be used by all.
_AS_HEADER: Final = """#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wunused-function"
{}
#pragma clang diagnostic pop"""
_ONCE: Final = re.compile(r'^#(include "\w+\.h"|pragma once)$', re.MULTILINE)
_LD_IMM64: Final = 0x18
_PSEUDO_MAP_FD: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """``maps`` are what the source declares; ``descriptors`` says which number stands for which in the instructions."""

    functions: Mapping[str, bytes]
    maps: Mapping[str, MapInfo]
    descriptors: Mapping[int, str]


def require_bcc() -> None:
    """Raises BpfError where bcc is missing."""
    try:
        import bcc  # noqa: PLC0415  # 100 MB, and only the loader needs it

        bcc.BPF  # noqa: B018  # a directory of that name is importable too
    except (ImportError, OSError, AttributeError) as error:
        raise BpfError(
            f"bcc is missing ({error}); install python3-bpfcc, or run scripts/setup, which links it into .venv"
        ) from error


def compile_sources(
    sources: Sequence[str],
    functions: Sequence[str],
    *,
    directory: Path = SOURCE_DIR,
    defines: Mapping[str, int] = NO_DEFINES,
) -> Compiled:
    """Compile files of ``directory`` as one unit; every warning is an error.  ``defines`` are macros of it.

    Raises:
        BpfError: with what the compiler said.
    """
    require_bcc()
    import bcc  # noqa: PLC0415

    unit = _unit(sources, directory, defines)
    os.environ["BCC_KERNEL_SOURCE"] = str(_HEADERS)
    with _captured_stderr() as said:
        try:
            module = bcc.BPF(text=unit.encode())
        except Exception as error:  # bcc raises nothing more particular
            raise BpfError(f"{', '.join(sources)} can not be compiled: {error}\n{said()}") from error
        finally:
            del os.environ["BCC_KERNEL_SOURCE"]
    try:
        maps, descriptors = _maps(bcc.lib, module)
        return Compiled(
            functions={name: bytes(module.dump_func(name.encode())) for name in functions},
            maps=maps,
            descriptors=descriptors,
        )
    finally:
        module.cleanup()


def relocate(instructions: bytes, descriptors: Mapping[int, str], maps: Mapping[str, int]) -> bytes:
    """Put the descriptors of ``maps`` in the places of the compiler's own."""
    code = bytearray(instructions)
    offset = 0
    while offset < len(code):
        if code[offset] != _LD_IMM64:
            offset += 8
            continue
        if code[offset + 1] >> 4 == _PSEUDO_MAP_FD:
            (number,) = struct.unpack_from("=i", code, offset + 4)
            struct.pack_into("=i", code, offset + 4, maps[descriptors[number]])
        offset += 16
    return bytes(code)


def _unit(sources: Sequence[str], directory: Path, defines: Mapping[str, int]) -> str:
    """One text, because bcc looks only into the file that it is given.

    The warnings are set by pragma: as flags they would be about bcc's own headers too.
    """
    parts = [f'#pragma clang diagnostic error "{each}"' for each in _WARNINGS]
    parts += [f'#pragma clang diagnostic ignored "{each}"' for each in _NOT_WARNINGS]
    parts += [f"#define {name} {value}" for name, value in defines.items()]
    for name in dict.fromkeys(("maps.h", *sources)):
        text = (directory / name).read_text(encoding="ascii")
        placed = f'#line 1 "{name}"\n{_ONCE.sub("", text)}'
        parts.append(_AS_HEADER.format(placed) if name.endswith(".h") else placed)
    return "\n".join(parts)


def _maps(lib: Any, module: Any) -> tuple[dict[str, MapInfo], dict[int, str]]:
    lib.bpf_table_name.restype = ctypes.c_char_p  # bcc's Python half does not declare these two
    lib.bpf_table_name.argtypes = lib.bpf_table_fd_id.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    found: dict[str, MapInfo] = {}
    descriptors: dict[int, str] = {}
    for number in range(lib.bpf_num_tables(module.module)):
        fd = lib.bpf_table_fd_id(module.module, number)
        name = lib.bpf_table_name(module.module, number).decode()
        found[name] = map_info(fd)
        descriptors[fd] = name
    return found, descriptors


@contextmanager
def _captured_stderr() -> Iterator[Any]:
    """The compiler writes to descriptor 2; what it said belongs into the error."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)

        def said() -> str:
            file.seek(0)
            return file.read().decode(errors="replace").strip()

        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)
