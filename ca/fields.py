"""Readers of the fields of a decoded message, each of which says what a wrong field should have been."""

from collections.abc import Mapping
from typing import Any, Final

from ca.errors import WireError
from ca.spiffe import SpiffeId, SpiffeIdError

_MAX_TEXT: Final = 4096


def text(fields: Mapping[str, Any], name: str, most: int = _MAX_TEXT) -> str:
    """Text, not too long.  Raises WireError."""
    value = fields.get(name)
    if not isinstance(value, str) or len(value) > most:
        raise WireError(f"{name!r} has to be text of at most {most} characters")
    return value


def _is_blob(value: object, max_bytes: int) -> bool:
    return isinstance(value, bytes) and 0 < len(value) <= max_bytes


def blob(fields: Mapping[str, Any], name: str, max_bytes: int) -> bytes:
    """Bytes, at least one.  Raises WireError."""
    value = fields.get(name)
    if not isinstance(value, bytes) or not _is_blob(value, max_bytes):
        raise WireError(f"{name!r} has to be 1 to {max_bytes} bytes")
    return value


def items(fields: Mapping[str, Any], name: str, most: int) -> list[Any]:
    """An array, not too long.  Raises WireError."""
    value = fields.get(name)
    if not isinstance(value, list) or len(value) > most:
        raise WireError(f"{name!r} has to be an array of at most {most} items")
    return value


def blobs(fields: Mapping[str, Any], name: str, most: int, max_bytes: int) -> tuple[bytes, ...]:
    """An array of bytes.  Raises WireError."""
    found = items(fields, name, most)
    if not all(_is_blob(item, max_bytes) for item in found):
        raise WireError(f"{name!r} has to hold bytes, 1 to {max_bytes} each")
    return tuple(found)


def mapping(value: object, name: str) -> dict[str, Any]:
    """A map inside an array or field ``name``.  Raises WireError."""
    if not isinstance(value, dict):
        raise WireError(f"{name!r} has to hold maps")
    return value


def identity(fields: Mapping[str, Any]) -> SpiffeId:
    """The field ``identity``.  Raises WireError."""
    try:
        return SpiffeId.parse(text(fields, "identity"))
    except SpiffeIdError as error:
        raise WireError(f"'identity': {error}") from error


def seconds(fields: Mapping[str, Any], name: str) -> float:
    """A duration in seconds; 0.0 when absent.  Raises WireError."""
    value = fields.get(name, 0.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e9:
        raise WireError(f"{name!r} has to be seconds, 0 or more")
    return float(value)


def sequence(fields: Mapping[str, Any], name: str) -> int:
    """A counter that fits 64 bits: so many a bundle's sequence number may have.  Raises WireError."""
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**64:
        raise WireError(f"{name!r} has to be a whole number, 0 or more")
    return value
