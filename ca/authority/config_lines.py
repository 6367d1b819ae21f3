"""Where in ca.toml a key stands, and what a misspelt one may have meant: for error texts.

Sans-I/O.  ``tomllib`` has read the text before, and tells no lines but of its own errors.
"""

import difflib
import re
from collections.abc import Iterable
from typing import Final

_HEADER: Final = re.compile(r"\s*\[\s*([A-Za-z0-9_.\s\"'-]+?)\s*\]\s*(?:#.*)?")
_KEY: Final = re.compile(r"\s*(?:\"([^\"]*)\"|'([^']*)'|([A-Za-z0-9_-]+))\s*[=.]")


def line_of(text: str, section: str, key: str | None) -> int | None:
    """The line of ``key`` in ``[section]``, or of the section, from 1; None where it is not plain to see.

    A section may stand as a key of the one above it (``plugins = ...`` within ``[attestation]``).
    """
    current = ""
    for number, line in enumerate(text.splitlines(), start=1):
        header = _HEADER.fullmatch(line)
        if header is not None:
            current = re.sub(r"[\s\"']", "", header[1])
            if current == section if key is None else current == f"{section}.{key}":
                return number
            continue
        found = _KEY.match(line)
        if found is None:
            continue
        name = found[1] or found[2] or found[3]
        if (current, name) == (section, key) or (key is None and current == "" and name == section):
            return number
    return None


def meant(name: str, names: Iterable[str]) -> str:
    """``; did you mean trust_domain?``, or nothing if nothing is like it."""
    found = difflib.get_close_matches(name, sorted(names), n=1)
    return f"; did you mean {found[0]}?" if found else ""
