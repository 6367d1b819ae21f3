"""What this agent sees, as one JSON document that is made while it is sent.

    {"node", "at", "status", "workloads", "certs", "edges", "connections", "recent", "unhealthy"}

The shapes of ``status``, ``certs``, ``connections`` and ``unhealthy`` are those
of the operator's commands (docs/cli.md), that of ``recent`` the access record's.
Everything in it has a bound: whoever asks must be able to hold the answers of
all nodes at once.  Names are data: they leave here as JSON strings.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Final

from node_agent.registry import Registry
from node_agent.report import Report
from node_agent.sight.series import EdgeCount
from node_agent.telemetry.admin import Row
from node_agent.telemetry.metrics import FamilyReading
from node_agent.telemetry.traffic import owner_name

_MAX_CONNECTIONS: Final = 256
_MAX_RECENT: Final = 256
_MAX_ROWS: Final = 5_000  # of everything else
_ROWS_A_CHUNK: Final = 64  # about a millisecond of encoding between two awaits


class OwnSight:
    """Asks the agent's parts; keeps nothing."""

    def __init__(
        self,
        *,
        node: str,
        report: Report,
        registry: Registry,
        connections: Callable[[], Iterable[Row]],
        recent: Callable[[], Iterable[Row]],
        families: Callable[[], Iterable[FamilyReading]],
        certs: Callable[[], Iterable[Row]],
        utc_now: Callable[[], datetime],
    ) -> None:
        """``connections`` are the live ones, ``recent`` the records of those that ended last, newest first."""
        self._node = node
        self._report = report
        self._registry = registry
        self._connections = connections
        self._recent = recent
        self._families = families
        self._certs = certs
        self._utc_now = utc_now

    def document(self) -> Iterator[bytes]:
        """This agent's sight, in chunks; some are empty: moments in which connections may have their turn."""
        count = EdgeCount()
        for _ in count.take(self._families()):
            yield b""
        head = {"node": self._node, "at": self._utc_now().timestamp(), "status": self._report.status()}
        yield json.dumps(head, default=str).encode()[:-1]
        parts: tuple[tuple[str, Iterable[Row], int], ...] = (
            ("workloads", (row for row in self._report.workloads() if row["local"]), _MAX_ROWS),
            ("certs", self._certs(), _MAX_ROWS),
            ("edges", ({**key._asdict(), **asdict(edge)} for key, edge in count.edges.items()), _MAX_ROWS),
            ("connections", self._connections(), _MAX_CONNECTIONS),
            ("recent", self._recent(), _MAX_RECENT),
            ("unhealthy", self._unhealthy(), _MAX_ROWS),
        )
        for name, rows, most in parts:
            yield f',"{name}":['.encode()
            yield from json_rows(itertools.islice(rows, most))
            yield b"]"
        yield b"}"

    def directory(self) -> Iterator[bytes]:
        """Services, endpoints and workloads of the whole mesh as this agent's registry has them: three JSON members."""
        parts: tuple[tuple[str, Iterable[Row]], ...] = (
            ("services", self._report.services()),
            ("endpoints", self._endpoints()),
            ("workloads", self._workloads()),
        )
        for number, (name, rows) in enumerate(parts):
            yield f'{"," if number else ""}"{name}":['.encode()
            yield from json_rows(rows)
            yield b"]"

    def _workloads(self) -> Iterator[Row]:
        owners = {str(each.name): owner_name(each) for each in self._registry.workloads()}
        for row in self._report.workloads():
            name = str(row["name"])
            yield {**row, "owner": owners.get(f"{row['namespace']}/{name}", name)}

    def _unhealthy(self) -> Iterator[Row]:
        return (row for row in self._endpoints() if row["health"] != "healthy")

    def _endpoints(self) -> Iterator[Row]:
        """Service by service: the endpoints of all of them at once would hold up the connections."""
        for service in dict.fromkeys(f"{row['namespace']}/{row['name']}" for row in self._report.services()):
            try:
                yield from self._report.endpoints(service)
            except LookupError:
                pass  # has gone since


def json_rows(rows: Iterable[Mapping[str, object]]) -> Iterator[bytes]:
    """The inside of a JSON array, in chunks; what is not JSON-able is written as text."""
    encode = json.JSONEncoder(default=str).encode
    rows = iter(rows)
    first = True
    while part := list(itertools.islice(rows, _ROWS_A_CHUNK)):
        yield (("" if first else ",\n") + ",\n".join(map(encode, part))).encode()
        first = False
