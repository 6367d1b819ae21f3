"""YAML and JSON text to plain data: the only door to PyYAML.

Built straight from libyaml's events, which is five times faster than composing
nodes and lets every limit act while the text is read, before anything has
grown:

* aliases are refused (a "billion laughs" file needs them), and merge keys;
* nesting is bounded, and so is the size of a file;
* duplicate keys are an error, as in the Kubernetes API server;
* scalars are read by the rules of YAML 1.2's core schema, as Kubernetes users
  expect: ``no`` is a text, ``12:30:45`` is not a number, keys are texts.

Line numbers are not kept: on an error the text is read once more to find them.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import yaml
from yaml import cyaml

MAX_FILE_BYTES: Final = 64 * 1024 * 1024  # 100k pods in one file are about 60 MB
MAX_DEPTH: Final = 64  # the deepest Kubernetes object, a CRD's schema, needs about 40
_MAX_NUMBER_CHARACTERS: Final = 40  # a 64-bit integer needs 20

Path = tuple[str | int, ...]

_INTEGER: Final = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", re.ASCII)
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
_WORDS: Final[dict[str, bool | None]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_STRING_TAG: Final = "tag:yaml.org,2002:str"
_NUMBER_STARTS: Final = frozenset("0123456789+-.")


class DocumentError(ValueError):
    """The text is not YAML that we accept; ``line`` counts from 1."""

    def __init__(self, document: int, line: int, reason: str) -> None:
        super().__init__(reason)
        self.document = document
        self.line = line
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a file; ``number`` counts from 1."""

    number: int
    data: Any


def read_documents(text: str) -> Iterator[Document]:
    """Read every document of a YAML or JSON text, in order.

    Raises:
        DocumentError: the text as a whole is rejected.
    """
    if text.lstrip("\ufeff \t\r\n").startswith("{"):
        try:
            data = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            pass  # a YAML flow mapping, or an error: the YAML reader says which, and where
        else:
            yield Document(1, data)
            return
    yield from _Builder(text).documents()


def line_of(text: str, number: int, path: Path) -> int:
    """Find the line of ``path``, or of the deepest part of it that exists."""
    try:
        return _Builder(text, watch=(number, path)).line()
    except DocumentError as error:
        return error.line


def document_starts(text: str) -> list[tuple[int, int]]:
    """The character and the line, both from 0, at which each document begins, as far as the text is YAML."""
    starts: list[tuple[int, int]] = []
    try:
        parser: Any = cyaml.CParser(text)  # type: ignore[attr-defined]
        while type(event := parser.get_event()) is not yaml.StreamEndEvent:
            if type(event) is yaml.DocumentStartEvent:
                mark: Any = event.start_mark
                starts.append((mark.index, mark.line))
    except (yaml.YAMLError, UnicodeError):
        pass  # what comes before the error counts
    return starts


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate key")
    return result


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _line_of_event(event: Any) -> int:
    return int(event.start_mark.line) + 1


class _Builder:
    """Turn events into data; with ``watch``, note the line of one path on the way."""

    def __init__(self, text: str, *, watch: tuple[int, Path] | None = None) -> None:
        self._text = text
        self._watch = watch
        self._parser: Any = None
        self._number = 0
        self._line = 1

    def documents(self) -> Iterator[Document]:
        try:
            self._parser = cyaml.CParser(self._text)  # type: ignore[attr-defined]
            while type(event := self._parser.get_event()) is not yaml.StreamEndEvent:
                if type(event) is yaml.DocumentStartEvent:
                    self._number += 1
                    path = self._watch[1] if self._watch and self._watch[0] == self._number else None
                    yield Document(self._number, self._value(self._parser.get_event(), 0, path))
        except yaml.MarkedYAMLError as error:
            mark: Any = error.problem_mark or error.context_mark
            reason = error.problem or error.context or "syntax error"
            raise self._error(mark, f"not valid YAML: {reason}; correct the syntax") from error
        except (yaml.YAMLError, UnicodeError) as error:
            reason = str(getattr(error, "reason", "")) or "not text"
            raise self._error(None, f"not valid YAML: {reason}; save the file as UTF-8 text") from error

    def line(self) -> int:
        for _ in self.documents():
            pass
        return self._line

    def _error(self, mark: Any, reason: str) -> DocumentError:
        return DocumentError(max(self._number, 1), mark.line + 1 if mark else 0, " ".join(reason.split()))

    def _value(self, event: Any, depth: int, watch: Path | None) -> Any:
        """Build one value; ``watch`` is what is left of the watched path below here."""
        if watch is not None:
            self._line = _line_of_event(event)
        kind = type(event)
        if kind is yaml.ScalarEvent:
            return self._scalar(event)
        if kind is yaml.AliasEvent:
            raise self._error(event.start_mark, f"the alias *{event.anchor} is not supported; write the value out")
        if depth == MAX_DEPTH:
            raise self._error(event.start_mark, f"nested deeper than {MAX_DEPTH} levels; flatten it")
        if event.tag is not None and event.tag != "!" and not event.tag.startswith("tag:yaml.org,2002:"):
            raise self._error(event.start_mark, f"the tag {event.tag} is not supported; remove it")
        build = self._mapping if kind is yaml.MappingStartEvent else self._sequence
        return build(depth + 1, watch)

    def _sequence(self, depth: int, watch: Path | None) -> list[Any]:
        result: list[Any] = []
        get_event = self._parser.get_event
        while type(event := get_event()) is not yaml.SequenceEndEvent:
            below = watch[1:] if watch and watch[0] == len(result) else None
            result.append(self._value(event, depth, below))
        return result

    def _mapping(self, depth: int, watch: Path | None) -> dict[str, Any]:
        result: dict[str, Any] = {}
        get_event = self._parser.get_event
        while type(event := get_event()) is not yaml.MappingEndEvent:
            if type(event) is not yaml.ScalarEvent:
                raise self._error(event.start_mark, "a key must be plain text; quote it or remove it")
            key = event.value
            if key in result:
                raise self._error(event.start_mark, f"the key {key!r} appears twice; remove one")
            if key == "<<" and event.implicit[0]:
                raise self._error(event.start_mark, "merge keys (<<) are not supported; write the values out")
            below = watch[1:] if watch and watch[0] == key else None
            if below is not None:
                self._line = _line_of_event(event)
            value = self._value(get_event(), depth, None if below == () else below)
            result[key] = value
        return result

    def _scalar(self, event: Any) -> Any:
        text: str = event.value
        if event.tag is not None and event.tag not in ("!", _STRING_TAG):
            raise self._error(event.start_mark, f"the tag {event.tag} is not supported; remove it")
        if event.tag is not None or not event.implicit[0]:
            return text
        if text[:1] in _NUMBER_STARTS and text:
            return self._number_or_text(event, text)
        return _WORDS.get(text, text)

    def _number_or_text(self, event: Any, text: str) -> Any:
        integer = _INTEGER.fullmatch(text)
        if not integer and not _FLOAT.fullmatch(text):
            return text
        if len(text) > _MAX_NUMBER_CHARACTERS:
            raise self._error(event.start_mark, "the number is too long; quote it if it is a text")
        if not integer:
            return float(text)
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
