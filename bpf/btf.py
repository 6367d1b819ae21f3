"""What only the running kernel knows of its own structures, from its BTF: offsets of members, values of constants.

/sys/kernel/btf/vmlinux holds every type of the kernel; linux/btf.h has the
format.  It is megabytes, so nothing is made of it but what was asked for.
"""

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from bpf.errors import UnsupportedError

if TYPE_CHECKING:
    from bpf.plan import KernelNumber

KERNEL: Final = Path("/sys/kernel/btf/vmlinux")
_MAGIC: Final = 0xEB9F
_HEADER: Final = struct.Struct("=HBBIIIII")
_TYPE: Final = struct.Struct("=III")
_STRUCT, _UNION, _ENUM, _ENUM64 = 4, 5, 6, 19
# What follows a type, by kind: bytes in all, or bytes for each of its elements.
_AFTER: Final = {1: 4, 3: 12, 14: 4, 17: 4}
_AFTER_EACH: Final = {_STRUCT: 12, _UNION: 12, _ENUM: 8, 13: 8, 15: 12, _ENUM64: 12}


class _Type(NamedTuple):
    kind: int
    name_at: int
    elements_at: int
    elements: int
    has_bit_sizes: bool


def numbers(wanted: "Sequence[KernelNumber]", *, path: Path = KERNEL) -> dict[str, int]:
    """The value of each ``define``.

    Raises:
        UnsupportedError: the kernel does not say; the text says what is missing.
    """
    if not wanted:
        return {}
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UnsupportedError(f"{path}: {error.strerror}; it needs a kernel with CONFIG_DEBUG_INFO_BTF") from error
    try:
        btf = _Btf(raw)
        return {each.define: btf.number(each.kind, each.member) for each in wanted}
    except (struct.error, IndexError, KeyError, ValueError) as error:
        raise UnsupportedError(f"{path}: {error.args[0] if error.args else 'not understood'}") from error


class _Btf:
    def __init__(self, raw: bytes) -> None:
        magic, _, _, header, types, self._types_bytes, strings, strings_bytes = _HEADER.unpack_from(raw)
        if magic != _MAGIC:
            raise ValueError("is no BTF of this machine's byte order")
        self._raw = raw
        self._types_at: int = header + types
        self._strings_at: int = header + strings
        self._strings_end = self._strings_at + strings_bytes
        self._types = list(self._read_types())  # by number, less one: 0 is void

    def number(self, kind: str, member: str) -> int:
        """The offset of a member in bytes, or the value of an enumerator."""
        name_at = self._name(kind)
        for each in self._types:
            if each.name_at != name_at:
                continue
            if each.kind in (_ENUM, _ENUM64):
                found = self._enumerator(each, self._name(member))
            elif each.kind in (_STRUCT, _UNION):
                found = self._bit_offset(each, self._name(member))
                found = None if found is None else found // 8
            else:
                continue
            if found is not None:
                return found
        raise ValueError(f"{kind} has no {member}")

    def _name(self, text: str) -> int:
        at = self._raw.find(b"\0" + text.encode() + b"\0", self._strings_at, self._strings_end)
        if at < 0:
            raise ValueError(f"{text} is not known to this kernel")
        return at + 1 - self._strings_at

    def _read_types(self) -> Iterator[_Type]:
        at, end = self._types_at, self._types_at + self._types_bytes
        while at < end:
            name_at, info, _ = _TYPE.unpack_from(self._raw, at)
            kind, elements = info >> 24 & 0x1F, info & 0xFFFF
            yield _Type(kind, name_at, at + _TYPE.size, elements, bool(info >> 31))
            at += _TYPE.size + _AFTER.get(kind, 0) + _AFTER_EACH.get(kind, 0) * elements

    def _enumerator(self, of: _Type, name_at: int) -> int | None:
        width = _AFTER_EACH[of.kind]
        for index in range(of.elements):
            name, value = struct.unpack_from("=II", self._raw, of.elements_at + index * width)
            if name == name_at:
                return int(value)
        return None

    def _bit_offset(self, of: _Type, name_at: int) -> int | None:
        """Also of what is in a union or structure without a name."""
        for index in range(of.elements):
            values: tuple[int, int, int] = _TYPE.unpack_from(self._raw, of.elements_at + index * _TYPE.size)
            name, number, offset = values
            if of.has_bit_sizes:
                offset &= 0xFFFFFF
            if name == name_at:
                return offset
            inner = self._types[number - 1]
            if not name and inner.kind in (_STRUCT, _UNION):
                found = self._bit_offset(inner, name_at)
                if found is not None:
                    return offset + found
        return None
