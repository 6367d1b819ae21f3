"""How many connections did not end well, by service and reason.

Sans-I/O.  What a connection that ends well costs here is nothing.  The number of
series is bounded: past it they are counted under the service ``other``.
"""

from collections.abc import Mapping
from typing import Final

from node_agent.errors import CloseReason
from node_agent.telemetry.connection_record import ConnectionRecord
from node_agent.telemetry.metrics import Metrics
from node_agent.telemetry.traffic import OTHER, UNKNOWN

NAME: Final = "ringfence_connection_failures_total"
LABELS: Final = ("direction", "service", "close_reason")


class Failures:
    """Registered with ``metrics``."""

    def __init__(self, metrics: Metrics, *, max_label_sets: int) -> None:
        self._max_label_sets = max_label_sets
        self._counts: dict[tuple[str, ...], int] = {}
        metrics.counter(NAME, "Connections that did not end well, by service and why.", self._read, labels=LABELS)

    def count(self, record: ConnectionRecord, reason: CloseReason) -> None:
        """Count a connection that has ended by ``reason``, which is not ``ok``."""
        if record.service is not None:
            service = str(record.service.service)
        elif record.destination is not None:
            service = str(record.destination.name)
        else:
            service = UNKNOWN
        key = (record.direction, service, reason.value)
        if key not in self._counts and len(self._counts) >= self._max_label_sets:
            key = (record.direction, OTHER, reason.value)
        self._counts[key] = self._counts.get(key, 0) + 1

    def _read(self) -> Mapping[tuple[str, ...], float]:
        return self._counts
