"""What the kernel relays (docs/bpf.md, "Relaying in the kernel"), for Prometheus."""

from collections.abc import Mapping
from typing import Protocol

from node_agent.telemetry.metrics import Labels, Metrics


class Relaying(Protocol):
    """The figures of capture/sockmap.py."""

    @property
    def pairs(self) -> int: ...

    @property
    def directions(self) -> int: ...

    @property
    def taken(self) -> int: ...

    @property
    def full(self) -> int: ...

    @property
    def demotions(self) -> Mapping[str, int]: ...


def register_sockmap(metrics: Metrics, relaying: Relaying) -> None:
    """Add its families."""

    def demotions() -> Mapping[Labels, float]:
        return {(reason,): count for reason, count in relaying.demotions.items()}

    metrics.gauge(
        "ringfence_sockmap_connections",
        "Plaintext connections that are joined in the kernel.",
        lambda: relaying.pairs,
    )
    metrics.gauge(
        "ringfence_sockmap_directions",
        "Their directions that the kernel relays now; each connection has two.",
        lambda: relaying.directions,
    )
    metrics.counter(
        "ringfence_sockmap_taken_total", "Directions that were given to the kernel.", lambda: relaying.taken
    )
    metrics.counter(
        "ringfence_sockmap_demotions_total",
        "How often the kernel left a direction to the agent, by why.",
        demotions,
        labels=("reason",),
    )
    metrics.counter(
        "ringfence_sockmap_full_total",
        "How often a connection was not given to the kernel because the map was full.",
        lambda: relaying.full,
    )
