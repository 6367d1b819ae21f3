"""Rates, of two answers of ``GET /traffic``; pure.

Counters only grow until the agent is started again: a smaller one than before
has begun at nothing since.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

Answer = Mapping[str, Any]
_DIRECTIONS: Final = {"source": "out", "destination": "in", "outbound": "out", "inbound": "in"}
_NOWHERE: Final = "(unknown)"
_UNKNOWN: Final = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What went to one service, or came for it, in one interval; rates are per second."""

    name: str
    direction: str
    connections: float = 0.0
    to_bytes: float = 0.0
    back_bytes: float = 0.0
    errors: float = 0.0
    reasons: Mapping[str, float] = field(default_factory=dict)
    open: int = 0
    connect_ms: float | None = None
    endpoints: int | None = None
    usable: int | None = None

    @property
    def why(self) -> str:
        """The reason of most errors, and how many others there are."""
        if not self.reasons:
            return ""
        first = max(self.reasons, key=lambda reason: (self.reasons[reason], reason))
        return first if len(self.reasons) == 1 else f"{first} +{len(self.reasons) - 1}"

    def describe(self) -> dict[str, object]:
        """As ``--json`` has it (docs/cli.md)."""
        return {
            "service": self.name,
            "direction": self.direction,
            "connections_per_s": round(self.connections, 3),
            "open": self.open,
            "to_bytes_per_s": round(self.to_bytes, 1),
            "back_bytes_per_s": round(self.back_bytes, 1),
            "errors_per_s": round(self.errors, 3),
            "errors_by_reason_per_s": {reason: round(rate, 3) for reason, rate in sorted(self.reasons.items())},
            "connect_ms": self.connect_ms,
            "endpoints": self.endpoints,
            "usable": self.usable,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """All services of one interval, and how long connecting took: seconds, None when nobody connected."""

    node: str = ""
    interval_s: float = 0.0
    services: tuple[Service, ...] = ()
    connect_p50_s: float | None = None
    connect_p99_s: float | None = None

    def describe(self) -> dict[str, object]:
        """As ``--json`` has it."""
        return {
            "node": self.node,
            "interval_s": round(self.interval_s, 3),
            "connect_p50_s": self.connect_p50_s,
            "connect_p99_s": self.connect_p99_s,
            "services": [service.describe() for service in self.services],
        }


_Key = tuple[str, str]  # service, direction


@dataclass(slots=True)
class _Sums:
    numbers: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)


def rates(before: Answer, after: Answer) -> Rates:
    """What happened between two answers."""
    seconds = after["at_s"] - before["at_s"]
    if seconds <= 0:  # the machine, and with it the agent, was started again
        seconds, before = after["at_s"] or 1.0, {}
    old, new = _sums(before), _sums(after)
    known = {row["service"]: row for row in after.get("services", ())}
    services = []
    for (name, direction), sums in new.items():
        past = old.get((name, direction), _Sums())
        grown = {key: _grown(past.numbers[key], sums.numbers[key]) / seconds for key in sums.numbers}
        reasons = {
            reason: rate
            for reason, count in sums.reasons.items()
            if (rate := _grown(past.reasons[reason], count) / seconds)
        }
        row = known.get(name, {}) if direction == "out" else {}
        services.append(
            Service(
                name=name,
                direction=direction,
                connections=grown.get("opened", 0.0),
                to_bytes=grown.get("received_bytes", 0.0),
                back_bytes=grown.get("sent_bytes", 0.0),
                errors=sum(reasons.values()),
                reasons=reasons,
                open=max(0, sums.numbers["opened"] - sums.numbers["closed"]),
                connect_ms=row.get("latency_ms"),
                endpoints=row.get("endpoints"),
                usable=row.get("usable"),
            )
        )
    buckets = _buckets(before, after)
    return Rates(
        node=str(after.get("node", "")),
        interval_s=seconds,
        services=tuple(services),
        connect_p50_s=quantile(buckets, 0.5),
        connect_p99_s=quantile(buckets, 0.99),
    )


def _sums(answer: Answer) -> dict[_Key, _Sums]:
    found: dict[_Key, _Sums] = {}
    for edge in answer.get("edges", ()):
        name = edge["service"] or edge["destination"] or _NOWHERE
        sums = found.setdefault((name, _DIRECTIONS.get(edge["reporter"], edge["reporter"])), _Sums())
        for key in ("opened", "closed", "sent_bytes", "received_bytes"):
            sums.numbers[key] += edge[key]
    for row in answer.get("failures", ()):
        named = (row["service"], row.get("destination_workload", _UNKNOWN))
        name = next((each for each in named if each != _UNKNOWN), _NOWHERE)  # as of an edge, above
        sums = found.setdefault((name, _DIRECTIONS.get(row["direction"], row["direction"])), _Sums())
        sums.reasons[row["close_reason"]] += int(row["count"])
    return found


def _grown(before: int, after: int) -> int:
    return after - before if after >= before else after


def _buckets(before: Answer, after: Answer) -> list[tuple[float, int]]:
    """``(upper bound in seconds, how many up to it)`` of outbound connects, ascending."""
    old, new = (_cumulative(answer.get("connect", ())) for answer in (before, after))
    return [(bound, _grown(old.get(bound, 0), count)) for bound, count in sorted(new.items())]


def _cumulative(rows: Iterable[Mapping[str, Any]]) -> dict[float, int]:
    found: Counter[float] = Counter()
    for row in rows:
        if row.get("direction") == "outbound":
            found[float(row["le"])] += int(row["count"])
    return dict(found)


def quantile(buckets: list[tuple[float, int]], share: float) -> float | None:
    """Seconds under which ``share`` of the observations stay, evenly spread within a bucket (as Prometheus does)."""
    total = buckets[-1][1] if buckets else 0
    if not total:
        return None
    wanted = share * total
    for (low, below), (high, up_to) in pairwise([(0.0, 0), *buckets]):
        if up_to >= wanted:
            if high == float("inf"):
                return low  # more than that is all that is known
            return low + (high - low) * (wanted - below) / (up_to - below)
    return None
