"""What is on the screen of ``ringfence top``; pure but for rich.

Texts are made harmless before rich gets them, and never read as its markup.
"""

from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from node_agent.cli.terminal import printable
from node_agent.cli.top.cells import HEADERS, cells, milliseconds, rate
from node_agent.cli.top.rates import Rates, Service
from node_agent.cli.top.state import HELP, SORTS, State

FRAME_LINES: Final = 4  # two above the table, its header, one below
_SORTED_BY: Final = {
    "connections": "CONN/S",
    "open": "OPEN",
    "to": "TO/S",
    "back": "BACK/S",
    "errors": "ERR/S",
    "latency": "CONNECT",
    "name": "SERVICE",
}
# From left to right, when the screen has so many columns; SERVICE, CONN/S and ERR/S are always there.
_NEEDS_COLUMNS: Final = {"DIR": 40, "WHY": 70, "TO/S": 80, "BACK/S": 80, "OPEN": 60, "CONNECT": 90, "UP": 100}


def draw(found: Rates, state: State, *, columns: int, lines: int, problem: str = "") -> tuple[RenderableType, State]:
    """The screen, and the state with what fits on it."""
    chosen = state.choose(found.services)
    state = state.of_screen(lines - FRAME_LINES, len(chosen))
    if state.shows_help:
        return Group(_line("ringfence top: keys", "bold"), Text(), *map(_line, HELP)), state
    shown = chosen[state.offset : state.offset + state.page]
    body: RenderableType = _table(shown, state, columns) if shown else _line(_nothing(found, state), "dim")
    missing = state.page - len(shown)
    filler = [Text("\n" * (missing - 1))] if missing > 0 else []  # the last line stays where it is
    return Group(_summary(found, chosen), _condition(state, problem), body, *filler, _foot(state, chosen)), state


def _table(services: list[Service], state: State, columns: int) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, expand=True, header_style="bold")
    names = [name.removeprefix(">") for name in HEADERS]
    shown = [index for index, name in enumerate(names) if columns >= _NEEDS_COLUMNS.get(name, 0)]
    for index in shown:
        arrow = "" if names[index] != _SORTED_BY[state.sort] else "\u25b2" if _is_ascending(state) else "\u25bc"
        table.add_column(
            Text(names[index] + arrow),
            justify="right" if HEADERS[index].startswith(">") else "left",
            no_wrap=True,
            overflow="ellipsis",
            ratio=1 if names[index] == "SERVICE" else None,
            min_width=8 if names[index] == "SERVICE" else None,
        )
    for service in services:
        row = [cell if isinstance(cell, tuple) else (cell, "") for cell in cells(service)]
        table.add_row(*(Text(row[index][0], style=row[index][1]) for index in shown))
    return table


def _is_ascending(state: State) -> bool:
    return (state.sort == "name") != state.is_reversed


def _summary(found: Rates, chosen: list[Service]) -> Text:
    errors = sum(service.errors for service in chosen)
    text = _line(
        f"{printable(found.node)}  {len(chosen)} services  {rate(sum(s.connections for s in chosen))} conn/s  "
        f"{sum(s.open for s in chosen)} open  "
    )
    text.append(f"{rate(errors)} errors/s", style="red" if errors else "")
    text.append(f"  connect p50 {milliseconds(found.connect_p50_s)} p99 {milliseconds(found.connect_p99_s)}")
    return text


def _condition(state: State, problem: str) -> Text:
    if problem:
        return _line(printable(problem), "red")
    if state.is_typing:
        return _line(f"filter: {printable(state.filter)}_", "yellow")
    parts = [f"every {state.interval_s:g} s", f"by {state.sort}"]
    parts += [f"filter {printable(state.filter)!r}"] if state.filter else []
    parts += [f"only {state.direction}"] if state.direction else []
    parts += [f"namespace {printable(state.namespace)}"] if state.namespace else []
    text = _line(", ".join(parts), "dim")
    if state.is_paused:
        text.append("  PAUSED", style="yellow")
    return text


def _foot(state: State, chosen: list[Service]) -> Text:
    last = min(len(chosen), state.offset + state.page)
    keys = " ".join(key for key, _ in SORTS.values())
    where = f"{state.offset + 1}-{last} of {len(chosen)}  " if len(chosen) > state.page else ""
    return _line(f"{where}?: keys  {keys}: sort  /: filter  p: pause  q: end", "dim")


def _nothing(found: Rates, state: State) -> str:
    if not found.node:
        return "looking ..."
    if found.services and (state.filter or state.direction or state.namespace):
        return "no service is left by the filter; Esc drops it"
    return "no connections yet"


def _line(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")
