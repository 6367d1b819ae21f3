"""Counters as Prometheus gets them, put together by who talks to whom.

Sans-I/O.  The standard TCP counters have a series for each label set; those that
differ only in ``response_flags`` are one edge of the picture.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from node_agent.telemetry.metrics import FamilyReading

_FAMILIES: Final[Mapping[str, str]] = {
    "istio_tcp_connections_opened_total": "opened",
    "istio_tcp_connections_closed_total": "closed",
    "istio_tcp_sent_bytes_total": "sent_bytes",
    "istio_tcp_received_bytes_total": "received_bytes",
}
UNKNOWN: Final = "unknown"  # that of telemetry.traffic, Istio's word
_SAMPLES_A_STEP: Final = 128  # less than a millisecond
_CLUSTER_SUFFIX: Final = ".svc.cluster.local"


class EdgeKey(NamedTuple):
    """Who talks to whom, as one agent reports it; None where it is not known."""

    reporter: str
    source: str | None
    source_identity: str | None
    destination: str | None
    destination_identity: str | None
    service: str | None
    security: str


@dataclass(slots=True)
class Edge:
    """Counters since the agent started; ``flags`` counts the connections that ended with each response flag."""

    opened: int = 0
    closed: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    flags: dict[str, int] = field(default_factory=dict)


class EdgeCount:
    """Puts the counters together, a few at a time: with thousands of label sets it is the work of many milliseconds."""

    def __init__(self) -> None:
        self.edges: dict[EdgeKey, Edge] = {}

    def take(self, families: "Iterable[FamilyReading]") -> Iterator[None]:
        """Count what these families tell of edges, and leave others alone; a pause may be made at each step."""
        for family in families:
            attribute = _FAMILIES.get(family.name)
            if attribute is None:
                continue
            for number, sample in enumerate(family.samples, start=1):
                self._add(attribute, dict(zip(family.labels, sample.values, strict=True)), int(sample.value))
                if number % _SAMPLES_A_STEP == 0:
                    yield

    def _add(self, attribute: str, labels: Mapping[str, str], count: int) -> None:
        edge = self.edges.setdefault(_key(labels), Edge())
        setattr(edge, attribute, getattr(edge, attribute) + count)
        if attribute == "closed":
            flag = labels.get("response_flags", UNKNOWN)
            edge.flags[flag] = edge.flags.get(flag, 0) + count


def edges_of(families: "Iterable[FamilyReading]") -> dict[EdgeKey, Edge]:
    """The same in one go."""
    count = EdgeCount()
    for _ in count.take(families):
        pass
    return count.edges


def _key(labels: Mapping[str, str]) -> EdgeKey:
    return EdgeKey(
        reporter=labels.get("reporter", UNKNOWN),
        source=_name(labels, "source"),
        source_identity=_known(labels.get("source_principal")),
        destination=_name(labels, "destination"),
        destination_identity=_known(labels.get("destination_principal")),
        service=_service(_known(labels.get("destination_service"))),
        security=labels.get("connection_security_policy", UNKNOWN),
    )


def _known(value: str | None) -> str | None:
    return None if value in (None, UNKNOWN) else value


def _name(labels: Mapping[str, str], end: str) -> str | None:
    workload = _known(labels.get(f"{end}_workload"))
    return None if workload is None else f"{labels.get(f'{end}_workload_namespace', UNKNOWN)}/{workload}"


def _service(host: str | None) -> str | None:
    """``web.shop.svc.cluster.local`` is ``shop/web``; the name of a place outside may itself have dots."""
    if host is None:
        return None
    name, _, namespace = host.removesuffix(_CLUSTER_SUFFIX).rpartition(".")
    return f"{namespace}/{name}" if name else host
