"""What the agents said, read with suspicion, and kept for a while when one of them is away.

Sans-I/O.  The local agent is ours; what the others sent may be anything.  A value
that is not what it should be is left out; texts are cut to a length that a page
can show; nothing here believes that an agent speaks only of itself.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

Row = Mapping[str, Any]

_MAX_TEXT: Final = 4096  # a SPIFFE ID has up to 2,048, a detail 1,000
_MAX_ROWS: Final = 20_000
_REMEMBERED_S: Final = 300.0  # how long the picture keeps what an agent said that is away
_LISTS: Final = ("workloads", "certs", "edges", "connections", "recent", "unhealthy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """One agent's answer; ``at`` is its own clock, in seconds since the epoch, ``heard_at`` ours, monotonic."""

    node: str
    at: float
    heard_at: float
    status: Row
    lists: Mapping[str, tuple[Row, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """One agent of the mesh: what it said last, if anything, and why it says nothing now, if so."""

    node: str
    sight: Sight | None
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """All that is known at one moment."""

    node: str
    services: tuple[Row, ...]
    endpoints: tuple[Row, ...]
    workloads: tuple[Row, ...]
    agents: tuple[Agent, ...]


class SightError(ValueError):
    """What was said is not what a Ringfence agent says."""


class Sights:
    """Takes the answers to ``GET /mesh``, one after the other."""

    def __init__(self) -> None:
        self._last: dict[str, Sight] = {}

    def take(self, document: object, *, now: float) -> Mesh:
        """Read an answer; ``now`` is monotonic seconds.

        Raises:
            SightError: it is not one.
        """
        if not isinstance(document, Mapping) or not isinstance(document.get("node"), str):
            raise SightError("the answer is not a Ringfence agent's; check --agent")
        agents = []
        said = document.get("agents")
        for row in said if isinstance(said, list) else ():
            node = text(row.get("node")) if isinstance(row, Mapping) else None
            if node is None:
                continue
            error = text(row.get("error"))
            if error is None:
                try:
                    self._last[node] = _sight(row.get("sight"), node=node, now=now)
                except SightError as wrong:
                    error = str(wrong)
            last = self._last.get(node)
            if last is not None and now - last.heard_at > _REMEMBERED_S:
                last = None
            agents.append(Agent(node=node, sight=last, error=error))
        known = {agent.node for agent in agents}
        self._last = {node: sight for node, sight in self._last.items() if node in known}
        return Mesh(
            node=document["node"],
            services=rows(document.get("services")),
            endpoints=rows(document.get("endpoints")),
            workloads=rows(document.get("workloads")),
            agents=tuple(agents),
        )


def _sight(document: object, *, node: str, now: float) -> Sight:
    try:
        read = json.loads(document) if isinstance(document, str) else None
    except (ValueError, RecursionError):
        raise SightError("what it says is not JSON") from None
    if not isinstance(read, Mapping):
        raise SightError("what it says is not a JSON object")
    status = read.get("status")
    return Sight(
        node=node,
        at=number(read.get("at")),
        heard_at=now,
        status=_row(status) if isinstance(status, Mapping) else {},
        lists={name: rows(read.get(name)) for name in _LISTS},
    )


def rows(value: object) -> tuple[Row, ...]:
    """The objects of a list, texts cut; whatever else is in it is left out."""
    if not isinstance(value, list):
        return ()
    return tuple(_row(each) for each in value[:_MAX_ROWS] if isinstance(each, Mapping))


def _row(value: Mapping[Any, Any]) -> dict[str, Any]:
    return {key: _value(each, depth=3) for key, each in value.items() if isinstance(key, str)}


def _value(value: object, *, depth: int) -> object:
    if isinstance(value, str):
        return value[:_MAX_TEXT]
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth and isinstance(value, list):
        return [_value(each, depth=depth - 1) for each in value[:_MAX_ROWS]]
    if depth and isinstance(value, Mapping):
        return {str(key)[:_MAX_TEXT]: _value(each, depth=depth - 1) for key, each in value.items()}
    return None


def text(value: object) -> str | None:
    """``value`` if it is a text that says something."""
    return value[:_MAX_TEXT] if isinstance(value, str) and value else None


def number(value: object) -> float:
    """``value`` if it is a finite number; otherwise 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    return float(value) if abs(value) < 1e18 else 0.0  # NaN fails the comparison, too
