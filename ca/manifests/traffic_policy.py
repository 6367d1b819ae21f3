"""TrafficPolicy manifests to values.

``traffic_policy.schema.json`` says what may be written and validates it; here
the defaults are filled in, and what a schema can not say is checked: what stands
there as rules for API servers, and one more (faults of several sources together,
which is too costly for CEL).
"""

import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ca.manifests import schema
from ca.manifests.documents import Path
from ca.manifests.fields import FieldError, Fields
from ca.manifests.traffic import (
    DEFAULT,
    Balancing,
    Fault,
    HashBy,
    HealthCheck,
    Limits,
    LoadBalancing,
    LocalityMode,
    LocalityPreference,
    OutlierDetection,
    RateLimit,
    Retry,
    Timeouts,
    Traffic,
    TrafficPolicy,
    WeightRule,
)

SCHEMA_FILE: Final = "traffic_policy.schema.json"

_CHECK_INTERVAL_S: Final = (0.1, 3600.0)  # every node that uses the Service checks every endpoint so often


def parse_traffic_policy(top: Fields) -> TrafficPolicy:
    """Read one object.

    Raises:
        FieldError: the schema does not allow it, or two of its values contradict each other.
    """
    path = top.path
    said = _without_nulls(top.data)
    schema.require_valid(said, _schema(), path)
    metadata, spec = top.fields("metadata"), said["spec"]
    return TrafficPolicy(
        namespace=sys.intern(metadata.name("namespace", "default", label=True)),
        name=metadata.name("name"),
        created=metadata.moment("creationTimestamp"),
        kind=_target_kind(spec["targetRef"], (*path, "spec", "targetRef")),
        service=sys.intern(spec["targetRef"]["name"]),
        port=spec.get("port"),
        traffic=_traffic(spec, (*path, "spec")),
    )


def _target_kind(said: Mapping[str, Any], path: Path) -> str:
    kind = str(said.get("kind", "Service"))
    group = "networking.istio.io" if kind == "ServiceEntry" else ""
    if said.get("group", group) != group:
        raise FieldError((*path, "group"), f'must be "{group}" for kind {kind}')
    return kind


def _without_nulls(data: Any) -> Any:
    """None counts as absent, as in the Kubernetes API."""
    if isinstance(data, dict):
        return {key: _without_nulls(value) for key, value in data.items() if value is not None}
    return data


@functools.cache
def _schema() -> schema.Schema:
    return schema.load(SCHEMA_FILE)


def _traffic(spec: Mapping[str, Any], path: Path) -> Traffic:
    return Traffic(
        balancing=_balancing(spec.get("loadBalancing", {}), (*path, "loadBalancing")),
        locality=_locality(spec.get("locality", {})),
        panic_threshold_percent=spec.get("panicThresholdPercent", DEFAULT.panic_threshold_percent),
        health_check=_health_check(spec["healthCheck"], (*path, "healthCheck")) if "healthCheck" in spec else None,
        outlier=_outlier(spec.get("outlierDetection", {}), (*path, "outlierDetection")),
        limits=_limits(spec.get("limits", {})),
        rate_limit=_rate_limit(spec.get("rateLimit", {}), (*path, "rateLimit")),
        faults=_faults(spec.get("faults", ()), (*path, "faults")),
        retry=_retry(spec.get("retry", {})),
        timeouts=_timeouts(spec.get("timeouts", {})),
    )


def _balancing(said: Mapping[str, Any], path: Path) -> Balancing:
    default = DEFAULT.balancing
    policy = LoadBalancing(said.get("policy", default.policy))
    if "hashBy" in said and policy is not LoadBalancing.CONSISTENT_HASH:
        raise FieldError((*path, "hashBy"), "is without effect; add policy: consistent-hash")
    return Balancing(
        policy=policy,
        hash_by=HashBy(said.get("hashBy", default.hash_by)),
        slow_start_s=_seconds(said, "slowStart", default.slow_start_s),
        subset=said.get("subset", default.subset),
        weights=tuple(
            WeightRule(labels=each["matchLabels"], weight=each["weight"]) for each in said.get("weights", ())
        ),
    )


def _locality(said: Mapping[str, Any]) -> LocalityPreference:
    default = DEFAULT.locality
    return LocalityPreference(
        mode=LocalityMode(said.get("mode", default.mode)),
        levels=tuple(said.get("levels", default.levels)),
        spillover_percent=said.get("spilloverPercent", default.spillover_percent),
    )


def _health_check(said: Mapping[str, Any], path: Path) -> HealthCheck:
    default = HealthCheck()
    interval_s = _seconds(said, "interval", default.interval_s)
    check = HealthCheck(
        tls=said.get("type") == "tls",
        port=said.get("port"),
        interval_s=interval_s,
        timeout_s=_seconds(said, "timeout", min(default.timeout_s, interval_s)),
        unhealthy_threshold=said.get("unhealthyThreshold", default.unhealthy_threshold),
        healthy_threshold=said.get("healthyThreshold", default.healthy_threshold),
    )
    if not _CHECK_INTERVAL_S[0] <= check.interval_s <= _CHECK_INTERVAL_S[1]:
        raise FieldError((*path, "interval"), "must be at least 100ms and at most 1h")
    if not 0 < check.timeout_s <= check.interval_s:
        raise FieldError((*path, "timeout"), "must be more than 0s and at most the interval")
    return check


def _outlier(said: Mapping[str, Any], path: Path) -> OutlierDetection:
    default = DEFAULT.outlier
    base_s = _seconds(said, "baseEjectionTime", default.base_ejection_s)
    max_s = _seconds(said, "maxEjectionTime", max(default.max_ejection_s, base_s))
    if base_s <= 0:
        raise FieldError((*path, "baseEjectionTime"), "must be more than 0s; to eject nothing write enabled: false")
    if max_s < base_s:
        raise FieldError((*path, "maxEjectionTime"), "must not be less than baseEjectionTime")
    if 0 < said.get("latencyFactor", 0) <= 1:
        raise FieldError((*path, "latencyFactor"), "must be more than 1, or 0 for off")
    return OutlierDetection(
        enabled=said.get("enabled", default.enabled),
        connect_failures=said.get("consecutiveConnectFailures", default.connect_failures),
        early_resets=said.get("consecutiveEarlyResets", default.early_resets),
        latency_factor=float(said.get("latencyFactor", default.latency_factor)),
        base_ejection_s=base_s,
        max_ejection_s=max_s,
        max_ejection_percent=said.get("maxEjectionPercent", default.max_ejection_percent),
    )


def _limits(said: Mapping[str, Any]) -> Limits:
    return Limits(
        max_connections=said.get("maxConnections"),
        max_pending_connects=said.get("maxPendingConnects"),
        max_connections_per_source=said.get("maxConnectionsPerSource"),
    )


def _rate_limit(said: Mapping[str, Any], path: Path) -> RateLimit:
    for burst, rate in (("connectionsBurst", "connectionsPerSecond"), ("bytesBurst", "bytesPerSecond")):
        if burst in said and rate not in said:
            raise FieldError((*path, burst), f"is without effect; add {rate}")
    connections, octets = said.get("connectionsPerSecond"), said.get("bytesPerSecond")
    if "perSource" in said and connections is None and octets is None:
        raise FieldError((*path, "perSource"), "is without effect; add connectionsPerSecond or bytesPerSecond")
    return RateLimit(
        connections_per_s=None if connections is None else float(connections),
        connections_burst=0.0 if connections is None else float(said.get("connectionsBurst", max(1.0, connections))),
        bytes_per_s=None if octets is None else float(octets),
        bytes_burst=float(said.get("bytesBurst", octets or 0.0)),
        per_source=said.get("perSource", False),
    )


def _faults(said: Sequence[Mapping[str, Any]], path: Path) -> tuple[Fault, ...]:
    faults = tuple(_fault(each, (*path, number)) for number, each in enumerate(said))
    for source in ("", *(source for each in faults for source in each.sources)):
        share = 0.0
        for number, each in enumerate(faults):
            if not each.sources or source in each.sources:
                share += each.percent
            if share > 100:
                whom = source or "every source"
                raise FieldError((*path, number, "percent"), f"with the entries before it more than 100 for {whom}")
    return faults


def _fault(said: Mapping[str, Any], path: Path) -> Fault:
    delay_s = _seconds(said, "delay", 0.0) if "delay" in said else None
    if delay_s == 0.0:
        raise FieldError((*path, "delay"), "must be more than 0s")
    return Fault(
        percent=float(said["percent"]),
        sources=tuple(said.get("sources", ())),
        delay_s=delay_s,
        refuse=said.get("refuse", False),
        reset_after_bytes=said.get("resetAfterBytes"),
    )


def _retry(said: Mapping[str, Any]) -> Retry:
    default = DEFAULT.retry
    return Retry(
        attempts=said.get("attempts", default.attempts),
        budget_percent=said.get("budgetPercent", default.budget_percent),
        min_per_s=float(said.get("minPerSecond", default.min_per_s)),
    )


def _timeouts(said: Mapping[str, Any]) -> Timeouts:
    default = DEFAULT.timeouts
    return Timeouts(
        connect_s=_seconds(said, "connect", 0.0) or None,
        handshake_s=_seconds(said, "handshake", 0.0) or None,
        idle_s=_seconds(said, "idle", default.idle_s),
        lifetime_s=_seconds(said, "lifetime", default.lifetime_s),
        half_closed_s=_seconds(said, "halfClosed", default.half_closed_s),
        stalled_write_s=_seconds(said, "stalledWrite", default.stalled_write_s),
    )


def _seconds(said: Mapping[str, Any], key: str, default: float) -> float:
    return schema.duration_s(said[key]) if key in said else default
