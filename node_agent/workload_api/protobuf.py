"""Just enough of the Protocol Buffers wire format for the messages of the Workload API.

Why not the ``protobuf`` package: importing it costs 3.1 MB of the idle agent's
45, for ten messages of strings and bytes.  What is here is small enough to be
read in a minute, and tests hold it against the real package in both
directions, on arbitrary messages and on arbitrary bytes.

Strict where the format leaves room: groups (deprecated since proto2) are
refused, unknown fields are skipped.  A decoder raises ``ProtobufError`` and
nothing else, whatever the bytes.

Format: https://protobuf.dev/programming-guides/encoding/
"""

import struct
from collections.abc import Iterator
from typing import Final

_VARINT: Final = 0
_FIXED64: Final = 1
_LENGTH_DELIMITED: Final = 2
_FIXED32: Final = 5
_MAX_VARINT_BYTES: Final = 10
_MAX_TAG: Final = 2**32 - 1  # 29 bits of field number, 3 of wire type


class ProtobufError(ValueError):
    """The bytes are no message; the text says why, without quoting them."""


def varint(number: int) -> bytes:
    """Encode a number of 0 or more."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def blob_field(number: int, value: bytes) -> bytes:
    """A field of bytes, or a message within a message."""
    return varint(number << 3 | _LENGTH_DELIMITED) + varint(len(value)) + value


def text_field(number: int, value: str) -> bytes:
    """A field of text."""
    return blob_field(number, value.encode())


def varint_field(number: int, value: int) -> bytes:
    """A field of an enumeration or a boolean."""
    return varint(number << 3 | _VARINT) + varint(value)


def double_field(number: int, value: float) -> bytes:
    """A field of a floating-point number."""
    return varint(number << 3 | _FIXED64) + struct.pack("<d", value)


def blobs(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The number and the bytes of each length-delimited field, in order; all others are skipped.

    Raises:
        ProtobufError: truncated or malformed.
    """
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        number, kind = tag >> 3, tag & 7
        if not 0 < number <= _MAX_TAG >> 3:
            raise ProtobufError("a field number is out of range")
        if kind == _LENGTH_DELIMITED:
            length, begin = _read_varint(data, position)
            position = _skip(data, begin, length)
            yield number, data[begin:position]
        elif kind == _VARINT:
            _, position = _read_varint(data, position)
        elif kind == _FIXED64:
            position = _skip(data, position, 8)
        elif kind == _FIXED32:
            position = _skip(data, position, 4)
        else:
            raise ProtobufError(f"wire type {kind} is not allowed")


def text(value: bytes) -> str:
    """Decode a field of text; raises ProtobufError."""
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise ProtobufError("a text is not UTF-8") from error


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for index in range(_MAX_VARINT_BYTES):
        if position + index >= len(data):
            raise ProtobufError("ends in the middle of a number")
        byte = data[position + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, position + index + 1
    raise ProtobufError("a number has more than ten bytes")


def _skip(data: bytes, position: int, length: int) -> int:
    if length > len(data) - position:
        raise ProtobufError("a field is longer than its message")
    return position + length
