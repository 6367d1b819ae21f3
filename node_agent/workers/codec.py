"""Values to plain data and back, by their types: what travels between the agent's own processes.

Sans-I/O.  A value is a frozen dataclass, a named tuple, or something inside
one: text, number, flag, bytes, path, enum, tuple, mapping, None, a union of
dataclasses.  A new manifest kind or field travels without a line of code here.

    dataclass, named tuple   an array of the fields, in order
    union of dataclasses     [name of the class, its array]
    tuple                    an array
    mapping                  an array of keys and values in turn: keys need not be text
    enum, path               its text

Both ends run the same code from the same files, so there are no versions.  A
decoder raises WireError on anything that its type does not allow; the values'
own checks run again, because they are built by their constructors.
"""

import dataclasses
import sys
import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar, Union, cast

from ca.errors import WireError

T = TypeVar("T")

_Function = Callable[[Any], Any]
_PLAIN: Final = (str, int, float, bool, bytes)


def encode(kind: Any, value: object) -> Any:
    """Return ``value``, which is a ``kind`` (a class or a union), as plain data for ``ca.wire``."""
    return _coders(kind)[0](value)


def decode(kind: type[T], data: object) -> T:
    """Return what ``encode`` was given.

    Raises:
        WireError: it is no ``kind``.
    """
    return cast(T, decode_any(kind, data))


def decode_any(kind: Any, data: object) -> Any:
    """Like ``decode``, for a union."""
    try:
        return _coders(kind)[1](data)
    except WireError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise WireError(f"not a {getattr(kind, '__name__', kind)}: {error}") from error


@cache
def _coders(kind: Any) -> tuple[_Function, _Function]:
    """``(encoder, decoder)`` of a type; built once, because a registry has 100,000 values of six types."""
    if kind in _PLAIN:
        return _same, _checked(kind)
    if kind is type(None):
        return _same, _nothing
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, Union):
        return _union(arguments)
    if origin is tuple:
        return _tuple(arguments)
    if origin in (Mapping, dict):
        return _mapping(*arguments)
    if isinstance(kind, type):
        if issubclass(kind, Enum):
            return (lambda value: value.value), kind
        if issubclass(kind, Path):
            return str, lambda data: kind(_text(data))
        if dataclasses.is_dataclass(kind):
            return _fields(kind, [field.name for field in dataclasses.fields(kind)])
        if issubclass(kind, tuple) and hasattr(kind, "_fields"):
            return _fields(kind, list(kind._fields))
    raise TypeError(f"{kind} is not a type that travels")


def _same(value: Any) -> Any:
    return value


def _text(data: object) -> str:
    if not isinstance(data, str):
        raise WireError(f"expected text, not {type(data).__name__}")
    return data


def _nothing(data: object) -> None:
    if data is not None:
        raise WireError(f"expected nothing, not {type(data).__name__}")


def _checked(kind: type) -> _Function:
    def decode_plain(data: Any) -> Any:
        if type(data) is not kind:
            if kind is float and type(data) is int:
                return float(data)
            raise WireError(f"expected {kind.__name__}, not {type(data).__name__}")
        return data

    return decode_plain


def _array(data: object) -> list[Any]:
    if not isinstance(data, list):
        raise WireError(f"expected an array, not {type(data).__name__}")
    return data


def _fields(kind: Any, names: list[str]) -> tuple[_Function, _Function]:
    hints = typing.get_type_hints(kind)
    coders = [_coders(hints[name]) for name in names]
    encoders = list(zip(names, [each[0] for each in coders], strict=True))
    decoders = list(zip(names, [each[1] for each in coders], strict=True))

    def encode_fields(value: Any) -> list[Any]:
        return [encode_one(getattr(value, name)) for name, encode_one in encoders]

    def decode_fields(data: Any) -> Any:
        if len(_array(data)) != len(decoders):
            raise WireError(f"a {kind.__name__} of {len(data)} fields, not {len(decoders)}")
        return kind(**{name: one(item) for (name, one), item in zip(decoders, data, strict=True)})

    return encode_fields, decode_fields


def _tuple(arguments: tuple[Any, ...]) -> tuple[_Function, _Function]:
    if len(arguments) != 2 or arguments[1] is not Ellipsis:
        raise TypeError("only tuple[X, ...] travels")
    encode_one, decode_one = _coders(arguments[0])
    if encode_one is _same:
        return list, lambda data: tuple([decode_one(item) for item in _array(data)])
    return (
        lambda value: [encode_one(item) for item in value],
        lambda data: tuple([decode_one(item) for item in _array(data)]),
    )


def _mapping(key: Any, item: Any) -> tuple[_Function, _Function]:
    encode_key, decode_key = _coders(key)
    encode_item, decode_item = _coders(item)

    def encode_mapping(value: Mapping[Any, Any]) -> list[Any]:
        flat: list[Any] = []
        for each, held in value.items():
            flat += (encode_key(each), encode_item(held))
        return flat

    def decode_mapping(data: Any) -> dict[Any, Any]:
        if len(_array(data)) % 2:
            raise WireError("a mapping with a key and no value")
        # Labels: the same few words in every pod.
        found = {_shared(decode_key(data[at])): _shared(decode_item(data[at + 1])) for at in range(0, len(data), 2)}
        if 2 * len(found) != len(data):
            raise WireError("a mapping has the same key twice")
        return found

    return encode_mapping, decode_mapping


def _shared(value: Any) -> Any:
    return sys.intern(value) if type(value) is str else value


def _union(members: tuple[Any, ...]) -> tuple[_Function, _Function]:
    """``X | None`` as X or nil; plain types as they are; dataclasses by their names."""
    rest = [member for member in members if member is not type(None)]
    if len(rest) == 1:
        encode_one, decode_one = _coders(rest[0])
        return (
            lambda value: None if value is None else encode_one(value),
            lambda data: None if data is None else decode_one(data),
        )
    if all(member in _PLAIN for member in rest):
        return _same, _one_of(members)
    by_type = {member: (member.__name__, _coders(member)[0]) for member in rest}
    by_name = {member.__name__: _coders(member)[1] for member in rest}

    def encode_member(value: Any) -> list[Any]:
        name, encode_one = by_type[type(value)]
        return [name, encode_one(value)]

    def decode_member(data: Any) -> Any:
        name, item = _array(data)
        return by_name[_text(name)](item)

    return encode_member, decode_member


def _one_of(kinds: tuple[type, ...]) -> _Function:
    def decode_plain(data: Any) -> Any:
        if type(data) not in kinds:
            raise WireError(f"a {type(data).__name__} is not one of {', '.join(kind.__name__ for kind in kinds)}")
        return data

    return decode_plain
