"""What a user wants of the connections to one Service, as values.

Durations are seconds.  ``DEFAULT`` is what a Service without a TrafficPolicy
gets; ``traffic_policy.py`` makes the others from manifests.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from ca.manifests.fields import NO_LABELS
from ca.manifests.names import ObjectKey

_HOUR_S: Final = 3600.0


class LoadBalancing(StrEnum):
    """How an endpoint is chosen among those that may be."""

    LEAST_LATENCY = "least-latency"
    LEAST_CONNECTIONS = "least-connections"
    ROUND_ROBIN = "round-robin"
    RANDOM = "random"
    CONSISTENT_HASH = "consistent-hash"


class HashBy(StrEnum):
    """What consistent-hash goes by."""

    SOURCE_ADDRESS = "source-address"
    SOURCE_IDENTITY = "source-identity"


class LocalityMode(StrEnum):
    """Whether near endpoints are preferred, or the only ones."""

    OFF = "off"
    PREFER = "prefer"
    STRICT = "strict"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightRule:
    """Pods with all these labels have this weight."""

    labels: Mapping[str, str] = field(hash=False)
    weight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Balancing:
    policy: LoadBalancing = LoadBalancing.LEAST_LATENCY
    hash_by: HashBy = HashBy.SOURCE_ADDRESS
    slow_start_s: float = 0.0
    subset: Mapping[str, str] = field(default_factory=lambda: NO_LABELS, hash=False)
    weights: tuple[WeightRule, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalityPreference:
    """``levels`` are of ``node``, ``zone``, ``region``, the nearest first."""

    mode: LocalityMode = LocalityMode.OFF
    levels: tuple[str, ...] = ("zone", "region")
    spillover_percent: int = 70


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheck:
    """``port`` is None for the endpoint's own; ``tls``: with a handshake."""

    tls: bool = False
    port: int | None = None
    interval_s: float = 5.0
    timeout_s: float = 1.0
    unhealthy_threshold: int = 3
    healthy_threshold: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierDetection:
    """``latency_factor`` 0 is off.  The defaults are Envoy's."""

    enabled: bool = True
    connect_failures: int = 5
    early_resets: int = 5
    latency_factor: float = 0.0
    base_ejection_s: float = 30.0
    max_ejection_s: float = 300.0
    max_ejection_percent: int = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """None is no limit."""

    max_connections: int | None = None
    max_pending_connects: int | None = None
    max_connections_per_source: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """Rates a second, None is no limit; a burst is one second's worth where it was not said."""

    connections_per_s: float | None = None
    connections_burst: float = 0.0
    bytes_per_s: float | None = None
    bytes_burst: float = 0.0
    per_source: bool = False


_NO_LIMITS: Final = Limits()
_NO_RATE_LIMIT: Final = RateLimit()


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """``attempts`` counts the first one too; None is the agent's own."""

    attempts: int | None = None
    budget_percent: int = 20
    min_per_s: float = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds.  ``connect_s`` and ``handshake_s`` None are the agent's own; 0.0 is none for the others."""

    connect_s: float | None = None
    handshake_s: float | None = None
    idle_s: float = _HOUR_S
    lifetime_s: float = 0.0
    half_closed_s: float = 0.0
    stalled_write_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One disturbance of ``percent`` of the connections; exactly one of the last three is set.

    ``sources`` are SPIFFE IDs, empty for every source.
    """

    percent: float
    sources: tuple[str, ...] = ()
    delay_s: float | None = None
    refuse: bool = False
    reset_after_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What is in force for one port of one Service."""

    balancing: Balancing = Balancing()
    locality: LocalityPreference = LocalityPreference()
    panic_threshold_percent: int = 50
    health_check: HealthCheck | None = None
    outlier: OutlierDetection = OutlierDetection()
    limits: Limits = Limits()
    rate_limit: RateLimit = RateLimit()
    retry: Retry = Retry()
    timeouts: Timeouts = Timeouts()
    faults: tuple[Fault, ...] = ()

    @property
    def restrains(self) -> bool:
        """Whether connections are limited, slowed down or disturbed."""
        return bool(self.faults) or self.limits != _NO_LIMITS or self.rate_limit != _NO_RATE_LIMIT


DEFAULT: Final = Traffic()
_BY_ANNOTATION: Final = {
    str(each): replace(DEFAULT, balancing=Balancing(policy=each)) if each is not DEFAULT.balancing.policy else DEFAULT
    for each in LoadBalancing
}


def default_for(load_balancing: str) -> Traffic:
    """What a Service without a policy gets whose annotation asks for this load balancing."""
    return _BY_ANNOTATION[load_balancing]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficPolicy:
    """``kind`` is Service or ServiceEntry; ``port`` None: every port of it that no policy names."""

    namespace: str
    name: str
    created: str = ""
    kind: str = "Service"
    service: str
    port: int | None = None
    traffic: Traffic = DEFAULT

    @property
    def key(self) -> ObjectKey:
        return ObjectKey("TrafficPolicy", self.namespace, self.name)
