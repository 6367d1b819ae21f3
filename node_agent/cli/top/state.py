"""What is shown of the rates, and what each key changes; pure.

c n o t b e l   sort: connections, name, open, to, back, errors, latency     r   the other way round
/               filter: type, Enter keeps it, Esc drops it                   d   out, in, both
p, space        pause                                                        + - interval
arrows, PgUp, PgDn, Home, End   scroll                                       ? h keys       q  end
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from node_agent.cli.top.rates import Service

SORTS: Final[Mapping[str, tuple[str, Callable[[Service], Any]]]] = {
    # name: the key, and what comes first when it is greatest (of names: smallest)
    "connections": ("c", lambda service: service.connections),
    "open": ("o", lambda service: service.open),
    "to": ("t", lambda service: service.to_bytes),
    "back": ("b", lambda service: service.back_bytes),
    "errors": ("e", lambda service: service.errors),
    "latency": ("l", lambda service: service.connect_ms if service.connect_ms is not None else -1.0),
    "name": ("n", lambda service: service.name),
}
HELP: Final = (
    "c o t b e l n   sort by connections, open, to, back, errors, latency, name",
    "r               the other way round",
    "/               filter by name: type, Enter keeps it, Esc drops it",
    "d               connections out, in, or both",
    "p or space      pause",
    "+ and -         look more seldom, more often",
    "arrows, PgUp, PgDn, Home, End   scroll",
    "q or Ctrl-C     end",
)
_BY_KEY: Final = {key: name for name, (key, _) in SORTS.items()}
_DIRECTIONS: Final = (None, "out", "in")
_INTERVALS_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_MAX_FILTER: Final = 60
_FAR: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """How somebody looks; ``page`` is how many rows the screen has."""

    sort: str = "connections"
    is_reversed: bool = False
    direction: str | None = None
    filter: str = ""
    namespace: str | None = None
    interval_s: float = 2.0
    is_typing: bool = False
    is_paused: bool = False
    shows_help: bool = False
    offset: int = 0
    page: int = 20
    is_over: bool = False

    def press(self, key: str) -> "State":
        """The state after a key: a character, or the name of one (``up``, ``escape``, ...)."""
        if self.is_typing:
            return self._type(key)
        if self.shows_help:
            return replace(self, shows_help=False, is_over=key == "q")
        if key in _BY_KEY:
            return replace(self, sort=_BY_KEY[key], is_reversed=False, offset=0)
        match key:
            case "q":
                return replace(self, is_over=True)
            case "r":
                return replace(self, is_reversed=not self.is_reversed, offset=0)
            case "p" | " ":
                return replace(self, is_paused=not self.is_paused)
            case "/":
                return replace(self, is_typing=True, offset=0)
            case "escape":
                return replace(self, filter="", offset=0)
            case "d":
                return replace(self, direction=_after(_DIRECTIONS, self.direction), offset=0)
            case "?" | "h":
                return replace(self, shows_help=True)
            case "+" | "-":
                return replace(self, interval_s=_step(self.interval_s, key))
            case _:
                return self._scroll(key)

    def _type(self, key: str) -> "State":
        match key:
            case "enter":
                return replace(self, is_typing=False)
            case "escape":
                return replace(self, is_typing=False, filter="")
            case "backspace":
                return replace(self, filter=self.filter[:-1])
            case _ if len(key) == 1 and key.isprintable() and len(self.filter) < _MAX_FILTER:
                return replace(self, filter=self.filter + key)
            case _:
                return self

    def _scroll(self, key: str) -> "State":
        steps = {"up": -1, "down": 1, "pageup": -self.page, "pagedown": self.page, "home": -_FAR, "end": _FAR}
        return replace(self, offset=max(0, self.offset + steps.get(key, 0)))

    def of_screen(self, page: int, rows: int) -> "State":
        """The same on a screen with ``page`` rows, when there are ``rows``: never past the end."""
        page = max(1, page)
        return replace(self, page=page, offset=min(self.offset, max(0, rows - page)))

    def choose(self, services: Iterable[Service]) -> list[Service]:
        """What is looked for, sorted."""
        wanted = self.filter.lower()
        chosen = [
            service
            for service in services
            if wanted in service.name.lower()
            and self.direction in {None, service.direction}
            and (self.namespace is None or service.name.startswith(f"{self.namespace}/"))
        ]
        chosen.sort(key=lambda service: (service.name, service.direction))
        value = SORTS[self.sort][1]
        chosen.sort(key=value, reverse=(self.sort != "name") != self.is_reversed)  # stable: equal ones by name
        return chosen


def _after(values: tuple[str | None, ...], value: str | None) -> str | None:
    return values[(values.index(value) + 1) % len(values)]


def _step(interval_s: float, key: str) -> float:
    if key == "+":
        return min((each for each in _INTERVALS_S if each > interval_s), default=interval_s)
    return max((each for each in _INTERVALS_S if each < interval_s), default=interval_s)
