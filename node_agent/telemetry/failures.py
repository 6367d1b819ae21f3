"""How many connections did not end well, by service, destination and reason.

Sans-I/O.  What a connection that ends well costs here is nothing.  The number of
series is bounded: past it they are counted under the service ``other``.
"""

from collections.abc import Mapping
from typing import Final

from node_agent.errors import CloseReason
from node_agent.telemetry.connection_record import ConnectionRecord
from node_agent.telemetry.metrics import Metrics
from node_agent.telemetry.traffic import OTHER, UNKNOWN, owner_name

NAME: Final = "ringfence_connection_failures_total"
LABELS: Final = ("direction", "service", "destination_workload", "close_reason")


class Failures:
    """Registered with ``metrics``."""

    def __init__(self, metrics: Metrics, *, max_label_sets: int) -> None:
        self._max_label_sets = max_label_sets
        self._counts: dict[tuple[str, ...], int] = {}
        metrics.counter(
            NAME, "Connections that did not end well, by service, destination and why.", self._read, labels=LABELS
        )

    def count(self, record: ConnectionRecord, reason: CloseReason) -> None:
        """Count a connection that has ended by ``reason``, which is not ``ok``."""
        service = UNKNOWN if record.service is None else str(record.service.service)
        there = record.destination
        workload = UNKNOWN if there is None else f"{there.name.namespace}/{owner_name(there)}"
        key = (record.direction, service, workload, reason.value)
        if key not in self._counts and len(self._counts) >= self._max_label_sets:
            key = (record.direction, OTHER, OTHER, reason.value)
        self._counts[key] = self._counts.get(key, 0) + 1

    def _read(self) -> Mapping[tuple[str, ...], float]:
        return self._counts
