"""Aligned columns that fit the terminal.

A header says how its column behaves: ``>NAME`` is aligned to the right, ``~NAME``
may be cut when the terminal is too narrow, ``~~NAME`` is cut before that, and so
on (``>~NAME`` is both).  When cutting is not enough such columns are left out,
and a last line names them.  A line is never longer than the terminal is wide.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from node_agent.cli.terminal import Paint, printable

Cell = str | tuple[str, str]  # text, or text and colour

_GAP: Final = 2
_LEAST: Final = 8  # a column narrower than this says nothing
_PROPORTION: Final = 30
_ELLIPSIS: Final = "\u2026"


def table(headers: Sequence[str], rows: Iterable[Sequence[Cell]], paint: Paint) -> str:
    """The lines of the table, without a line feed at the end."""
    right = [">" in header[: len(header) - len(header.lstrip(">~"))] for header in headers]
    gives = [header[: len(header) - len(header.lstrip(">~"))].count("~") for header in headers]
    names = [header.lstrip(">~") for header in headers]
    cells = [[cell if isinstance(cell, tuple) else (cell, "") for cell in row] for row in rows]
    texts = [[printable(text) for text, _ in row] for row in cells]
    widths = [max(map(cell_width, column)) for column in zip(names, *texts, strict=True)]
    hidden: list[str] = []
    if paint.width is not None:
        widths = fit(widths, names=names, gives=gives, screen=paint.width)
        hidden = [name for name, width in zip(names, widths, strict=True) if not width]
    shown = [(width, to_right) if width else None for width, to_right in zip(widths, right, strict=True)]
    lines = [_line([(name, "bold") for name in names], shown, paint)]
    lines += [
        _line([(text, colour) for text, (_, colour) in zip(plain, row, strict=True)], shown, paint)
        for row, plain in zip(cells, texts, strict=True)
    ]
    if hidden:
        lines.append(paint(cut(f"too narrow for {', '.join(hidden)}; --json shows all", paint.width or 0), "dim"))
    return "\n".join(lines)


def fit(widths: Sequence[int], *, names: Sequence[str], gives: Sequence[int], screen: int) -> list[int]:
    """The widths that fit a ``screen``, 0 for a column that is left out; those that give most give first."""
    fitted = list(widths)
    order = sorted((column for column, give in enumerate(gives) if give), key=lambda column: (-gives[column], -column))
    for column in order:
        least = min(fitted[column], max(_LEAST, cell_width(names[column])))
        fitted[column] -= max(0, min(_total(fitted) - screen, fitted[column] - least))
    for column, name in enumerate(names):  # a name out of proportion must not displace the others
        if not gives[column] and fitted[column] > _PROPORTION:
            least = max(_PROPORTION, cell_width(name))
            fitted[column] -= max(0, min(_total(fitted) - screen, fitted[column] - least))
    for column in order:
        if _total(fitted) > screen:
            fitted[column] = 0
    for column in range(len(fitted) - 1, -1, -1):  # nothing that may give is left: the last columns fall off
        over = _total(fitted) - screen
        if over > 0:
            fitted[column] = fitted[column] - over if fitted[column] - over >= cell_width(names[column]) else 0
    return fitted


def _total(widths: Sequence[int]) -> int:
    shown = [width for width in widths if width]
    return sum(shown) + _GAP * max(0, len(shown) - 1)


def _line(cells: Sequence[tuple[str, str]], columns: Sequence[tuple[int, bool] | None], paint: Paint) -> str:
    padded = []
    for (text, colour), column in zip(cells, columns, strict=True):
        if column is None:
            continue
        width, to_right = column
        fitting = cut(text, width)
        space = " " * (width - cell_width(fitting))
        painted = paint(fitting, colour)
        padded.append(space + painted if to_right else painted + space)
    return (" " * _GAP).join(padded).rstrip()


def cut(text: str, width: int) -> str:
    """``text`` in at most ``width`` columns; of a SPIFFE ID the end is kept, of all else the beginning."""
    if cell_width(text) <= width:
        return text
    if width < 1:
        return ""
    if text.startswith("spiffe://"):
        while text and cell_width(text) > width - 1:
            text = text[1:]
        return _ELLIPSIS + text
    while text and cell_width(text) > width - 1:
        text = text[:-1]
    return text + _ELLIPSIS


def cell_width(text: str) -> int:
    """How many columns ``text`` takes: two for a wide character, none for a combining one (UAX #11)."""
    if text.isascii():
        return len(text)
    from unicodedata import category, east_asian_width  # noqa: PLC0415  (names are nearly always ASCII)

    return sum(0 if category(c) in {"Mn", "Me"} else 2 if east_asian_width(c) in {"W", "F"} else 1 for c in text)
