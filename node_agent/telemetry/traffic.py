"""The standard ``istio_tcp_*`` counters, under the labels that dashboards know.

One small object a label set holds the four counters.  The number of label sets
is bounded ([metrics] max_label_sets): past the bound new ones are counted
together under the label value ``other``, and
``ringfence_metric_label_sets_overflowed_total`` says how often.

Directions are Istio's: *sent* is what travels from the destination back to the
source ("total bytes sent during response"), *received* is what travels from the
source to the destination ("received during request"), whoever reports.

Sans-I/O, one thread.
"""

import re
from collections.abc import Callable, Iterator
from typing import Final, Literal, NamedTuple

from ca.spiffe import SpiffeId
from node_agent.config import MetricsSection
from node_agent.model import ObjectName, Workload
from node_agent.telemetry.metrics import LIFETIME_S, QUICK_S, Histogram, Labels, Metrics
from node_agent.telemetry.response_flags import ResponseFlag

Direction = Literal["outbound", "inbound"]
Reporter = Literal["source", "destination"]
SecurityPolicy = Literal["mutual_tls", "none"]

LABELS: Final = (
    "reporter",
    "source_workload",
    "source_workload_namespace",
    "source_principal",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_service",
    "connection_security_policy",
    "response_flags",
)
UNKNOWN: Final = "unknown"  # Istio's word for a label that can not be known
OTHER: Final = "other"
_MAX_CACHED_KEYS: Final = 10_000  # keys name pods, which come and go; label sets name workloads
_CLUSTER_DOMAIN: Final = "cluster.local"

DIRECTIONS: Final[tuple[Direction, ...]] = ("outbound", "inbound")

_FAMILIES: Final = (
    ("istio_tcp_connections_opened_total", "Connections opened.", "opened"),
    ("istio_tcp_connections_closed_total", "Connections closed.", "closed"),
    ("istio_tcp_sent_bytes_total", "Bytes from the destination to the source (the response).", "sent_bytes"),
    ("istio_tcp_received_bytes_total", "Bytes from the source to the destination (the request).", "received_bytes"),
)


class TrafficKey(NamedTuple):
    """What the labels are made of; the response flag is known only at the end."""

    reporter: Reporter
    source: Workload | None
    source_identity: SpiffeId | None
    destination: Workload | None
    destination_identity: SpiffeId | None
    service: ObjectName | None
    security: SecurityPolicy


class Series:
    """The four counters of one label set."""

    __slots__ = ("closed", "opened", "overflow", "received_bytes", "sent_bytes", "values")

    def __init__(self, values: Labels, *, overflow: bool) -> None:
        self.values = values
        self.overflow = overflow
        self.opened = 0
        self.closed = 0
        self.sent_bytes = 0
        self.received_bytes = 0


class Traffic:
    """All label sets that were seen, registered with ``metrics``."""

    def __init__(self, metrics: Metrics, *, max_label_sets: int = MetricsSection().max_label_sets) -> None:
        self._max_label_sets = max_label_sets
        self._by_labels: dict[tuple[str, ...], Series] = {}
        self._by_key: dict[object, Series] = {}
        self._overflowed = 0
        self.connect_s = _by_direction(
            metrics, "ringfence_connect_duration_seconds", "Time until a connection had an upstream.", QUICK_S
        )
        self.lifetime_s = _by_direction(
            metrics, "ringfence_connection_duration_seconds", "How long connections that ended had lived.", LIFETIME_S
        )
        for name, help_text, attribute in _FAMILIES:
            metrics.counter(name, help_text, self._reading_of(attribute), labels=LABELS)
        metrics.counter(
            "ringfence_metric_label_sets_overflowed_total",
            "Counter look-ups that ended under the label value 'other' because there were too many label sets.",
            lambda: self._overflowed,
        )

    def series(self, key: TrafficKey, flag: ResponseFlag) -> Series:
        """The counters to move for ``key``; cheap when the same was asked before."""
        reporter, source, source_identity, destination, destination_identity, service, security = key
        # A workload's uid stands for it: hashing the whole value would cost more than the rest of this call.
        short = (
            reporter,
            source and source.uid,
            source_identity,
            destination and destination.uid,
            destination_identity,
            service,
            security,
            flag,
        )
        series = self._by_key.get(short)
        if series is None:
            series = self._find(key, flag)
            if len(self._by_key) >= _MAX_CACHED_KEYS:
                self._by_key.clear()
            self._by_key[short] = series
        self._overflowed += series.overflow
        return series

    def again(self, series: Series) -> Series:
        """What ``series`` returned before, for the same key and flag: counted as another look-up."""
        self._overflowed += series.overflow
        return series

    def count_ended(self, series: Series, connections: int, *, sent_bytes: int, received_bytes: int) -> None:
        """Count connections that opened, moved these bytes in all, and ended well; ``series`` is of NONE."""
        series.opened += connections
        series.closed += connections
        series.sent_bytes += sent_bytes
        series.received_bytes += received_bytes
        self._overflowed += 2 * connections * series.overflow  # looked up at the opening and at the end

    def _find(self, key: TrafficKey, flag: ResponseFlag) -> Series:
        values = label_values(key, flag)
        series = self._by_labels.get(values)
        if series is not None:
            return series
        overflow = len(self._by_labels) >= self._max_label_sets
        if overflow:
            values = (key.reporter, *[OTHER] * 7, key.security, flag.value)
        return self._by_labels.setdefault(values, Series(values, overflow=overflow))

    def _reading_of(self, attribute: str) -> Callable[[], Iterator[tuple[Labels, float]]]:
        def reading() -> Iterator[tuple[Labels, float]]:
            # A copy: new series may appear while the scrape is being sent.
            for series in list(self._by_labels.values()):
                yield series.values, getattr(series, attribute)

        return reading


def _by_direction(metrics: Metrics, name: str, help_text: str, bounds: tuple[float, ...]) -> dict[Direction, Histogram]:
    family = metrics.histogram(name, help_text, bounds=bounds, labels={"direction": DIRECTIONS})
    return {direction: family.of(direction) for direction in DIRECTIONS}


def label_values(key: TrafficKey, flag: ResponseFlag) -> tuple[str, ...]:
    """The label values in the order of :data:`LABELS`."""
    return (
        key.reporter,
        owner_name(key.source) if key.source else UNKNOWN,
        key.source.name.namespace if key.source else UNKNOWN,
        str(key.source_identity) if key.source_identity else UNKNOWN,
        owner_name(key.destination) if key.destination else UNKNOWN,
        key.destination.name.namespace if key.destination else UNKNOWN,
        str(key.destination_identity) if key.destination_identity else UNKNOWN,
        f"{key.service.name}.{key.service.namespace}.svc.{_CLUSTER_DOMAIN}" if key.service else UNKNOWN,
        key.security,
        flag.value,
    )


def owner_name(workload: Workload) -> str:
    """The name under which Istio shows a pod: that of the controller that made it.

    A Deployment's pod is ``<deployment>-<pod-template-hash>-<suffix>``, a
    StatefulSet's ``<set>-<index>``; a Job labels its pods with its name.  A pod
    that nobody made is its own workload.
    """
    name = workload.name.name
    labels = workload.labels
    if template_hash := labels.get("pod-template-hash"):
        return name.rpartition(f"-{template_hash}-")[0] or name
    if labels.get("statefulset.kubernetes.io/pod-name") == name:
        return re.sub(r"-\d+$", "", name)
    return labels.get("batch.kubernetes.io/job-name") or labels.get("job-name") or name
