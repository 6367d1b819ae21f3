"""The figures of all workers, added up: what an operator and Prometheus see of the agent as one.

Sans-I/O.  The last complete answer of each worker stands until the next.  When a
worker ends, its counters stay in the sum and its gauges leave it, so a counter
never goes back; what a killed worker counted after its last answer is lost.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, cast

from node_agent.balance.health_shares import ELSEWHERE
from node_agent.balance.loads import EndpointLoad
from node_agent.model import EndpointAddress
from node_agent.telemetry.metrics import FamilyReading, Kind, Labels, Merge, Sample
from node_agent.workers.messages import AnswerRow, BlockRow, Count, DebugRow, FamilyRow, LiveRow, LoadRow, Topic

OPEN: Final = "open"
TOTAL: Final = "total"
TUNNELS_IDLE: Final = "tunnels_idle"
TUNNELS_BUSY: Final = "tunnels_busy"
RESIDENT_BYTES: Final = "resident_bytes"
_GROWING: Final = frozenset({TOTAL})
_KEPT: Final = frozenset({"counter", "histogram"})
_EVERY: Final = _KEPT | {"gauge"}

_Number = int | float
_BADNESS: Final = {"healthy": 0, "silent": 1, "probing": 2, "ejected": 3, "unhealthy": 4}
_LoadKey = tuple[EndpointAddress, str]


@dataclass(slots=True)
class _Family:
    kind: str
    help_text: str
    labels: Labels
    merge: str
    samples: dict[tuple[Labels, str], _Number] = field(default_factory=dict)  # by label values and suffix

    def add(self, samples: Iterable[tuple[tuple[Labels, str], _Number]]) -> None:
        """Put another process's numbers to these.  Of histograms too: their buckets are the same everywhere."""
        own = self.samples
        if self.merge == "max":
            for key, value in samples:
                own[key] = max(own.get(key, value), value)
        else:
            for key, value in samples:
                own[key] = own.get(key, 0) + value


@dataclass(slots=True)
class _Worker:
    counts: dict[str, _Number] = field(default_factory=dict)
    families: dict[str, _Family] = field(default_factory=dict)
    connections: list[Mapping[str, object]] = field(default_factory=list)
    recent: list[Mapping[str, object]] = field(default_factory=list)
    archive: list[bytes] = field(default_factory=list)
    loads: dict[_LoadKey, EndpointLoad] = field(default_factory=dict)
    debugging: dict[Topic, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class Figures:
    """The answers of the workers, by worker number."""

    def __init__(self) -> None:
        self._workers: dict[int, _Worker] = {}
        self._past = _Worker()  # what the counters of ended workers came to

    def take(self, worker: int, topic: Topic, rows: Iterable[AnswerRow]) -> None:
        """Replace what ``worker`` said about ``topic`` by a complete new answer."""
        held = self._workers.setdefault(worker, _Worker())
        match topic:
            case Topic.COUNTS:
                said = list(rows)
                held.counts = {row.name: row.value for row in said if isinstance(row, Count)}
                held.problems = [row.text for row in said if isinstance(row, DebugRow)]
            case Topic.CONNECTIONS:
                held.connections = [{**row.cells, "worker": worker} for row in rows if isinstance(row, LiveRow)]
            case Topic.RECENT:
                held.recent = [row.cells for row in rows if isinstance(row, LiveRow)]
            case Topic.ARCHIVE:
                held.archive = [row.records for row in rows if isinstance(row, BlockRow)]
            case Topic.LOADS:
                held.loads = {
                    (EndpointAddress(row.ip, row.port), row.uid): EndpointLoad(
                        row.open_connections, row.latency_s, row.health, row.why, row.ejected_for_s
                    )
                    for row in rows
                    if isinstance(row, LoadRow)
                }
            case Topic.PROFILE | Topic.STACKS | Topic.MEMORY:
                held.debugging[topic] = next((row.text for row in rows if isinstance(row, DebugRow)), "{}")
            case Topic.METRICS:
                held.families = _families(row for row in rows if isinstance(row, FamilyRow))

    def ended(self, worker: int) -> None:
        """Keep the counters of a worker that has ended, and nothing else of it."""
        held = self._workers.pop(worker, None)
        if held is None:
            return
        for name in held.counts.keys() & _GROWING:
            self._past.counts[name] = self._past.counts.get(name, 0) + held.counts[name]
        _add_families(self._past.families, held.families, only=_KEPT)

    def count(self, name: str, *, worker: int | None = None) -> _Number:
        """One of the counts above, of one worker or of the agent."""
        if worker is not None:
            held = self._workers.get(worker)
            return held.counts.get(name, 0) if held else 0
        return sum(each.counts.get(name, 0) for each in (self._past, *self._workers.values()))

    def problems(self) -> list[str]:
        """What operators should know of the workers."""
        return [f"{each} (worker {number})" for number, held in sorted(self._workers.items()) for each in held.problems]

    def connections(self) -> list[Mapping[str, object]]:
        """The live connections of all workers."""
        return [row for held in self._workers.values() for row in held.connections]

    def recent(self) -> list[Mapping[str, object]]:
        """The records of connections that ended last, newest first, of all workers that run."""
        rows = [row for held in self._workers.values() for row in held.recent]
        return sorted(rows, key=lambda row: str(row["time"]), reverse=True)

    def debugging(self, topic: Topic) -> list[dict[str, object]]:
        """What each worker said last about one of the topics of ``telemetry.debugging``."""
        return [
            {"process": f"worker {number}", **json.loads(held.debugging[topic])}
            for number, held in sorted(self._workers.items())
            if topic in held.debugging
        ]

    def take_archive(self) -> list[bytes]:
        """The records that the workers have just sent; they are kept here no longer."""
        blocks = [block for held in self._workers.values() for block in held.archive]
        for held in self._workers.values():
            held.archive = []
        return blocks

    def load(self, address: EndpointAddress, uid: str) -> EndpointLoad:
        """An endpoint as the agent sees it: connections added up, latency averaged over who has measured it.

        Each worker ejects by what it has seen itself; shown is the worst of what they think of it.
        """
        loads = [found for held in self._workers.values() if (found := held.loads.get((address, uid))) is not None]
        latencies = [load.latency_s for load in loads if load.latency_s is not None]
        worst = max(
            loads, key=lambda load: (_BADNESS[load.health], load.why != ELSEWHERE), default=EndpointLoad(0, None)
        )
        return worst._replace(
            open_connections=sum(load.open_connections for load in loads),
            latency_s=sum(latencies) / len(latencies) if latencies else None,
        )

    def families(self, own: Iterable[FamilyReading]) -> Iterator[FamilyReading]:
        """The parent's ``own`` families and the workers', equal names and labels added up."""
        merged: dict[str, _Family] = {}
        for reading in own:
            merged[reading.name] = _Family(
                reading.kind,
                reading.help_text,
                reading.labels,
                reading.merge,
                {(sample.values, sample.suffix): sample.value for sample in reading.samples},
            )
        for held in (self._past, *self._workers.values()):
            _add_families(merged, held.families)
        for name, family in merged.items():
            yield FamilyReading(
                name=name,
                kind=cast(Kind, family.kind),
                help_text=family.help_text,
                labels=family.labels,
                merge=cast(Merge, family.merge),
                samples=[Sample(values, value, suffix) for (values, suffix), value in family.samples.items()],
            )


def _families(rows: Iterable[FamilyRow]) -> dict[str, _Family]:
    found: dict[str, _Family] = {}
    for row in rows:
        family = found.setdefault(row.name, _Family(row.kind, row.help_text, row.labels, row.merge))
        family.add(((sample.values, sample.suffix), sample.value) for sample in row.samples)
    return found


def _add_families(into: dict[str, _Family], families: Mapping[str, _Family], *, only: frozenset[str] = _EVERY) -> None:
    for name, family in families.items():
        if family.kind in only:
            found = into.setdefault(name, _Family(family.kind, family.help_text, family.labels, family.merge))
            found.add(family.samples.items())
