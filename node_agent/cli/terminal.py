"""Text for a terminal: tables, colours, units, and nothing that the terminal would obey.

Everything shown may come from somebody else (a pod's name, a peer's error
text), so whatever is not printable is shown escaped.
"""

import os
from collections.abc import Iterable, Sequence
from typing import Final, TextIO

_COLOURS: Final = {"red": "31", "green": "32", "yellow": "33", "bold": "1"}
_GAP: Final = "  "


def printable(text: str) -> str:
    r"""``text`` with control, format and other invisible characters as ``\x1b`` or ``\u202e``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


class Paint:
    """Colours on a terminal, plain text elsewhere and where NO_COLOR is set (no-color.org)."""

    def __init__(self, stream: TextIO) -> None:
        self._on = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def __call__(self, text: str, colour: str) -> str:
        """``text`` in ``colour``: red, green, yellow or bold; anything else changes nothing."""
        if not self._on or colour not in _COLOURS:
            return text
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


Cell = str | tuple[str, str]  # text, or text and colour


def table(headers: Sequence[str], rows: Iterable[Sequence[Cell]], paint: Paint) -> str:
    """Aligned columns, those whose header begins with ``>`` to the right.  Ends without a line feed."""
    right = [header.startswith(">") for header in headers]
    names = [header.removeprefix(">") for header in headers]
    cells = [[cell if isinstance(cell, tuple) else (cell, "") for cell in row] for row in rows]
    texts = [[printable(text) for text, _ in row] for row in cells]
    widths = [max(map(len, column)) for column in zip(names, *texts, strict=True)]
    lines = [_line([paint(name, "bold") for name in names], names, widths, right)]
    for row, plain in zip(cells, texts, strict=True):
        painted = [paint(text, colour) for text, (_, colour) in zip(plain, row, strict=True)]
        lines.append(_line(painted, plain, widths, right))
    return "\n".join(lines)


def _line(painted: Sequence[str], plain: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = [
        " " * (width - len(text)) + shown if to_right else shown + " " * (width - len(text))
        for shown, text, width, to_right in zip(painted, plain, widths, right, strict=True)
    ]
    return _GAP.join(padded).rstrip()


def duration(seconds: object) -> str:
    """``4.2s``, ``3m12s``, ``5h03m``, ``2d04h``; a dash when it is no number."""
    if not isinstance(seconds, int | float):
        return "-"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours < 24 else f"{hours // 24}d{hours % 24:02d}h"


def size(count: object) -> str:
    """``0 B``, ``1.5 KiB``, ``3.0 GiB``; a dash when it is no number."""
    if not isinstance(count, int | float):
        return "-"
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} TiB"
