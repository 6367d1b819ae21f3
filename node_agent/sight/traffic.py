"""``GET /traffic`` on the operator's socket: counters by who talks to whom, for ``ringfence top``.

    {"node", "at_s", "edges": [...], "failures": [...], "services": [...], "connect": [...]}

Counters only grow until the agent is started again; ``at_s`` is the agent's own
clock, so that whoever asks twice can make rates of them.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Final

from ca.http_server import JSON, Response, Routes
from node_agent.sight.series import EdgeCount
from node_agent.telemetry.admin import Row, json_rows
from node_agent.telemetry.failures import NAME as FAILURES
from node_agent.telemetry.metrics import BUCKET, LE, FamilyReading

PATH: Final = "/traffic"
RECENT_PATH: Final = "/recent"
CONNECT_SECONDS: Final = "ringfence_connect_duration_seconds"
_OURS: Final = frozenset({FAILURES, CONNECT_SECONDS})
_ROWS_A_CHUNK: Final = 64  # about a millisecond of encoding between two awaits


def traffic_routes(
    *,
    node: str,
    families: Callable[[], Iterable[FamilyReading]],
    endpoints: Callable[[str], Iterable[Row]],
    recent: Callable[[], Iterable[Row]],
    now: Callable[[], float],
) -> Routes:
    """``endpoints`` are the rows of ``ringfence endpoints SERVICE``; raises LookupError for an unknown one.

    ``recent`` are the access records of the connections that ended last, newest first.
    """

    def document() -> Iterator[bytes]:
        count = EdgeCount()
        held: dict[str, list[dict[str, object]]] = {}
        for family in families():
            if family.name in _OURS:
                held[family.name] = list(_labelled(family))
            for _ in count.take((family,)):
                yield b""  # a moment in which connections may have their turn
        yield json.dumps({"node": node, "at_s": now()}).encode()[:-1]
        yield from _array("edges", ({**key._asdict(), **asdict(edge)} for key, edge in count.edges.items()))
        yield from _array("failures", map(_without_suffix, held.get(FAILURES, ())))
        yield from _array("connect", _buckets(held.get(CONNECT_SECONDS, ())))
        names = dict.fromkeys(key.service for key in count.edges if key.service is not None)
        yield from _array("services", (row for name in names for row in _service(name, endpoints)))
        yield b"}\n"

    return {
        PATH: {"GET": lambda _: Response(200, JSON, document())},
        RECENT_PATH: {"GET": lambda _: Response(200, JSON, json_rows(recent()))},
    }


def _labelled(family: FamilyReading) -> Iterator[dict[str, object]]:
    for sample in family.samples:
        labels = dict(zip(family.names_of(sample), sample.values, strict=True))
        yield {**labels, "count": sample.value, "suffix": sample.suffix}


def _buckets(rows: Iterable[dict[str, object]]) -> Iterator[dict[str, object]]:
    """The buckets of a histogram: how many observations took at most ``le`` seconds."""
    for row in rows:
        if row["suffix"] == BUCKET and LE in row:
            yield _without_suffix(row)


def _without_suffix(row: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in row.items() if key != "suffix"}


def _service(name: str, endpoints: Callable[[str], Iterable[Row]]) -> Iterator[Row]:
    """What the balancer knows of a service: nothing, if its manifest has gone since."""
    try:
        rows = list(endpoints(name))
    except LookupError:
        return
    latencies = [latency for row in rows if isinstance(latency := row.get("latency_ms"), float)]
    yield {
        "service": name,
        "endpoints": len(rows),
        "usable": sum(bool(row.get("ready")) and row.get("health") == "healthy" for row in rows),
        "latency_ms": round(sum(latencies) / len(latencies), 3) if latencies else None,
    }


def _array(name: str, rows: Iterable[Row]) -> Iterator[bytes]:
    pending, separator = [f',"{name}":['], ""
    for row in rows:
        pending.append(separator + json.dumps(row, default=str))
        separator = ",\n"
        if len(pending) >= _ROWS_A_CHUNK:
            yield "".join(pending).encode()
            pending.clear()
    yield ("".join(pending) + "]").encode()
