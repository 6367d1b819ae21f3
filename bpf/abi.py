"""The structures that Python and the kernel share, read from maps.h: they exist once.

The reader knows what maps.h promises to be: structures of fixed-width integers
and arrays of them, without padding, and constants.  Anything else is an error
here, not a wrong offset somewhere.  The loader compares the sizes with what the
compiler made of the same file.
"""

import hashlib
import re
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

_HEADER: Final = Path(__file__).with_name("maps.h")
_CODES: Final = {"__u8": ("B", 1), "__u16": ("H", 2), "__u32": ("I", 4), "__u64": ("Q", 8)}
_COMMENT: Final = re.compile(r"/\*.*?\*/", re.DOTALL)
_STRUCT: Final = re.compile(r"struct (\w+) \{([^}]*)\};")
_CONSTANT: Final = re.compile(r"^#define (\w+) +(0x[0-9a-f]+|\d+)\s*$", re.MULTILINE)
_MEMBER: Final = re.compile(r"(\w+) (\w+)(?:\[(\d+)\])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One member; ``count`` is None for a plain one."""

    name: str
    offset: int
    code: str
    count: int | None
    size_bytes: int


class Layout:
    """A structure of maps.h: packs members given by name, unpacks to a dictionary."""

    def __init__(self, name: str, members: tuple[Member, ...], size_bytes: int) -> None:
        self.name = name
        self.members = {each.name: each for each in members}
        self.size_bytes = size_bytes

    @property
    def whole(self) -> struct.Struct:
        """All members in their order, arrays as bytes."""
        codes = (each.code if each.count is None else f"{each.size_bytes}s" for each in self.members.values())
        return struct.Struct("=" + "".join(codes))

    def pack(self, **values: int | bytes | tuple[int, ...]) -> bytes:
        """Members that are not given are zero; arrays are given as bytes (no longer than they are) or as numbers."""
        raw = bytearray(self.size_bytes)
        for name, value in values.items():
            member = self.members[name]
            if isinstance(value, bytes):
                assert len(value) <= member.size_bytes, (self.name, name)
                raw[member.offset : member.offset + len(value)] = value
            elif isinstance(value, tuple):
                struct.pack_into(f"={member.count}{member.code}", raw, member.offset, *value)
            else:
                assert member.count is None, (self.name, name)
                struct.pack_into(f"={member.code}", raw, member.offset, value)
        return bytes(raw)

    def number(self, raw: bytes, name: str, index: int = 0) -> int:
        """One number of a member."""
        member = self.members[name]
        width = struct.calcsize(f"={member.code}")
        found: int = struct.unpack_from(f"={member.code}", raw, member.offset + index * width)[0]
        return found

    def bytes_of(self, raw: bytes, name: str) -> bytes:
        """A member as it stands."""
        member = self.members[name]
        return raw[member.offset : member.offset + member.size_bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Abi:
    """All of maps.h; ``fingerprint`` tells two versions of it apart."""

    structs: dict[str, Layout]
    constants: dict[str, int]
    fingerprint: int


def parse(text: str) -> Abi:
    """Read a header of that restricted kind; raises ValueError naming what it does not know."""
    plain = _COMMENT.sub("", text)
    constants = {name: int(value, 0) for name, value in _CONSTANT.findall(plain)}
    structs = {name: _layout(name, body) for name, body in _STRUCT.findall(plain)}
    rest = _CONSTANT.sub("", _STRUCT.sub("", plain)).replace("#pragma once", "").strip()
    if rest:
        raise ValueError(
            f"maps.h: not understood: {rest.splitlines()[0]!r}; write structures of integers and constants"
        )
    digest = hashlib.sha256(" ".join(plain.split()).encode()).digest()
    return Abi(structs=structs, constants=constants, fingerprint=int.from_bytes(digest[:8], "little"))


def _layout(name: str, body: str) -> Layout:
    members: list[Member] = []
    offset, alignment = 0, 1
    for line in filter(None, (each.strip() for each in body.split(";"))):
        match = _MEMBER.fullmatch(line)
        if match is None or match[1] not in _CODES:
            raise ValueError(f"maps.h: struct {name}: not understood: {line!r}; write __u8 to __u64, or arrays of them")
        code, width = _CODES[match[1]]
        if offset % width:
            raise ValueError(f"maps.h: struct {name}: the compiler would pad before {match[2]}; write the padding down")
        count = int(match[3]) if match[3] else None
        size = width * (count or 1)
        members.append(Member(name=match[2], offset=offset, code=code, count=count, size_bytes=size))
        offset += size
        alignment = max(alignment, width)
    if offset % alignment:
        raise ValueError(f"maps.h: struct {name}: the compiler would pad at the end; write the padding down")
    return Layout(name, tuple(members), offset)


@cache
def abi() -> Abi:
    """maps.h of this version of the project."""
    return parse(_HEADER.read_text(encoding="ascii"))
