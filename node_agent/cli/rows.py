"""The agent's rows as a table: columns, and cells that are harmless to a terminal."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from node_agent.cli.table import Cell, table
from node_agent.cli.terminal import Paint, printable

Row = Mapping[str, Any]
Column = tuple[str, Callable[[Row], Cell]]  # header (``>`` first: to the right), and what a row shows under it

_LEAST_MS: Final = 0.05  # what is shown as 0.1 ms
_STATE_COLOURS: Final = {
    "serving": "green",
    "valid": "green",
    "pending": "yellow",
    "renewing": "yellow",
    "waiting": "yellow",
    "opening": "yellow",
    "closing": "yellow",
    "expired": "red",
    "failed": "red",
    "revoked": "red",
}


def rows_table(rows: Sequence[Row], paint: Paint, *columns: Column) -> str:
    """A line a row; ``none`` without rows."""
    if not rows:
        return "none"
    return table([header for header, _ in columns], [[cell(row) for _, cell in columns] for row in rows], paint)


def text(value: object) -> str:
    """``value`` as harmless text; a dash when there is none."""
    return "-" if value is None or value == "" else printable(str(value))


def state(value: object) -> Cell:
    """A word for a condition, in its colour."""
    shown = text(value)
    return shown, _STATE_COLOURS.get(shown, "")


def milliseconds(value: object) -> str:
    """``4.2 ms``; a dash when it is no number, or an estimate that has faded: nothing takes 0.0 ms."""
    return f"{value:.1f} ms" if isinstance(value, int | float) and value >= _LEAST_MS else "-"
