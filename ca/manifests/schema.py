"""Judge data by a JSON Schema: the files that ship are what validates.

The part of draft 2020-12 that our schemas use, and no other keyword: a schema
with one that is not known here is refused when it is read, so that nothing in
the file is without effect.  ``jsonschema`` would do all of it, at five megabytes
that each agent would keep; the tests hold this one against it.

What no schema can say, which values contradict each other, stands in the schemas as
rules for API servers (``x-kubernetes-validations``, in CEL): scripts/crds copies
them.  Here the parser says it; the tests hold the two against each other.

Errors come one at a time, the first in the order of the document, with the path
of the value and what to write instead.
"""

import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path as FilePath
from typing import Any, Final

from ca.manifests.documents import Path
from ca.manifests.fields import FieldError, shown

Schema = Mapping[str, Any]
_ANNOTATIONS: Final = frozenset({"$schema", "$defs", "title", "description", "default", "x-kubernetes-validations"})


def load(name: str) -> Schema:
    """Read a schema that ships with this package; raises ValueError for a keyword that is not known."""
    schema: Schema = json.loads(FilePath(__file__).with_name(name).read_text(encoding="utf-8"))
    _require_known(schema)
    return schema


def require_valid(data: Any, schema: Schema, path: Path = ()) -> None:
    """Raise FieldError for the first thing in ``data`` that the schema does not allow."""
    _judge(data, schema, schema, path)


def _judge(data: Any, schema: Schema, root: Schema, path: Path) -> None:
    for keyword, wanted in schema.items():
        if keyword not in _ANNOTATIONS:
            _KEYWORDS[keyword](data, wanted, schema, root, path)


def _ref(data: Any, wanted: str, _schema: Schema, root: Schema, path: Path) -> None:
    _judge(data, _defined(root, wanted), root, path)


def _defined(root: Schema, reference: str) -> Schema:
    found: Any = root
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    definition: Schema = found
    return definition


_TYPES: Final[Mapping[str, tuple[str, Callable[[Any], bool]]]] = {
    "object": ("a mapping", lambda data: isinstance(data, dict)),
    "array": ("a list", lambda data: isinstance(data, list)),
    "string": ("text", lambda data: isinstance(data, str)),
    "boolean": ("true or false", lambda data: isinstance(data, bool)),
    "integer": ("a whole number", lambda data: isinstance(data, int) and not isinstance(data, bool)),
    "number": ("a number", lambda data: isinstance(data, int | float) and not isinstance(data, bool)),
}


def _type(data: Any, wanted: str, _schema: Schema, _root: Schema, path: Path) -> None:
    name, is_type = _TYPES[wanted]
    if not is_type(data):
        raise FieldError(path, f"must be {name}, not {shown(data)}")


def _const(data: Any, wanted: Any, _schema: Schema, _root: Schema, path: Path) -> None:
    if data != wanted or isinstance(data, bool) != isinstance(wanted, bool):
        raise FieldError(path, f"must be {shown(wanted)}, not {shown(data)}")


def _enum(data: Any, wanted: list[str], _schema: Schema, _root: Schema, path: Path) -> None:
    if data not in wanted:
        raise FieldError(path, f"must be one of {', '.join(wanted)}, not {shown(data)}")


def _pattern(data: Any, wanted: str, schema: Schema, _root: Schema, path: Path) -> None:
    # A JSON Schema's $ is the end of the text, Python's also stands before a last newline.
    if isinstance(data, str) and not re.search(wanted.replace("$", r"\Z"), data, re.ASCII):
        what = schema.get("description")
        raise FieldError(path, f"{shown(data)} is not of the form {wanted}" + (f": {what}" if what else ""))


def _max_length(data: Any, wanted: int, _schema: Schema, _root: Schema, path: Path) -> None:
    if isinstance(data, str) and len(data) > wanted:
        raise FieldError(path, f"must have at most {wanted} characters, {shown(data)} has {len(data)}")


def _is_number(data: Any) -> bool:
    return isinstance(data, int | float) and not isinstance(data, bool)


def _minimum(data: Any, wanted: float, _schema: Schema, _root: Schema, path: Path) -> None:
    if _is_number(data) and not data >= wanted:
        raise FieldError(path, f"must be at least {wanted}, not {shown(data)}")


def _exclusive_minimum(data: Any, wanted: float, _schema: Schema, _root: Schema, path: Path) -> None:
    if _is_number(data) and not data > wanted:
        raise FieldError(path, f"must be more than {wanted}, not {shown(data)}")


def _maximum(data: Any, wanted: float, _schema: Schema, _root: Schema, path: Path) -> None:
    if _is_number(data) and not data <= wanted:
        raise FieldError(path, f"must be at most {wanted}, not {shown(data)}")


def _count(data: Any, kind: type, at_least: int, at_most: float, path: Path) -> None:
    if isinstance(data, kind) and not at_least <= len(data) <= at_most:  # type: ignore[arg-type]
        wanted = f"at least {at_least}" if len(data) < at_least else f"at most {at_most:g}"  # type: ignore[arg-type]
        raise FieldError(path, f"must have {wanted} entries, not {len(data)}")  # type: ignore[arg-type]


def _items(data: Any, wanted: Schema, _schema: Schema, root: Schema, path: Path) -> None:
    for index, each in enumerate(data if isinstance(data, list) else ()):
        _judge(each, wanted, root, (*path, index))


def _unique_items(data: Any, _wanted: bool, _schema: Schema, _root: Schema, path: Path) -> None:
    for index, each in enumerate(data if isinstance(data, list) else ()):
        if each in data[:index]:
            raise FieldError((*path, index), f"{shown(each)} is there twice; remove one")


def _required(data: Any, wanted: list[str], _schema: Schema, _root: Schema, path: Path) -> None:
    for key in wanted if isinstance(data, dict) else ():
        if key not in data:
            raise FieldError((*path, key), "is missing; add it")


def _properties(data: Any, wanted: Mapping[str, Schema], _schema: Schema, root: Schema, path: Path) -> None:
    for key, value in data.items() if isinstance(data, dict) else ():
        if key in wanted:
            _judge(value, wanted[key], root, (*path, key))


def _additional(data: Any, wanted: Schema | bool, schema: Schema, root: Schema, path: Path) -> None:
    known = schema.get("properties", {})
    for key, value in data.items() if isinstance(data, dict) else ():
        if key in known:
            continue
        if isinstance(wanted, bool):
            raise FieldError((*path, key), f"is not known here; known are {', '.join(sorted(known))}")
        _judge(value, wanted, root, (*path, key))


def _one_of(data: Any, wanted: list[Schema], _schema: Schema, _root: Schema, path: Path) -> None:
    """Only ``required`` stands in our ``oneOf``: which keys exclude each other."""
    if not isinstance(data, dict):
        return
    names = [each["required"][0] for each in wanted]
    present = [name for name in names if name in data]
    if len(present) != 1:
        raise FieldError(path, f"must have exactly one of {', '.join(names)}, not {', '.join(present) or 'none'}")


_KEYWORDS: Final[Mapping[str, Callable[[Any, Any, Schema, Schema, Path], None]]] = {
    "$ref": _ref,
    "type": _type,
    "const": _const,
    "enum": _enum,
    "pattern": _pattern,
    "maxLength": _max_length,
    "minimum": _minimum,
    "exclusiveMinimum": _exclusive_minimum,
    "maximum": _maximum,
    "minItems": lambda data, wanted, _s, _r, path: _count(data, list, wanted, float("inf"), path),
    "maxItems": lambda data, wanted, _s, _r, path: _count(data, list, 0, wanted, path),
    "minProperties": lambda data, wanted, _s, _r, path: _count(data, dict, wanted, float("inf"), path),
    "maxProperties": lambda data, wanted, _s, _r, path: _count(data, dict, 0, wanted, path),
    "items": _items,
    "uniqueItems": _unique_items,
    "required": _required,
    "properties": _properties,
    "additionalProperties": _additional,
    "oneOf": _one_of,
}


def _require_known(schema: Schema) -> None:
    for keyword, value in schema.items():
        if keyword in ("properties", "$defs"):
            below = list(value.values())
        elif keyword == "items":
            below = [value]
        elif keyword == "additionalProperties":
            below = [] if value is False else [value]
        elif keyword == "oneOf":
            if any(list(each) != ["required"] or len(each["required"]) != 1 for each in value):
                raise ValueError("oneOf may hold nothing but one required key each")
            below = []
        elif keyword in _KEYWORDS or keyword in _ANNOTATIONS:
            below = []
        else:
            raise ValueError(f"the schema has a keyword that is not known here: {keyword}")
        for each in below:
            _require_known(each)


_DURATION: Final = re.compile(r"([0-9]{1,5})(h|m(?!s)|s|ms)")
_UNIT_S: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


@lru_cache(maxsize=1024)
def duration_s(text: str) -> float:
    """The seconds of a duration that its schema has let through (GEP-2257)."""
    return sum(int(number) * _UNIT_S[unit] for number, unit in _DURATION.findall(text))
