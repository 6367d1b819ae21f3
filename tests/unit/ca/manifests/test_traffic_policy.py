"""TrafficPolicy: what may be written, what it means, and what is said of mistakes."""

from dataclasses import fields
from typing import Any

import pytest
import yaml

from ca.manifests import ManifestError, TrafficPolicy, parse_manifests
from ca.manifests.traffic import (
    DEFAULT,
    Balancing,
    Fault,
    HealthCheck,
    Limits,
    LoadBalancing,
    LocalityMode,
    RateLimit,
    Timeouts,
    Traffic,
    WeightRule,
    default_for,
)
from ca.manifests.traffic_policy import SCHEMA_FILE

_HEAD = {
    "apiVersion": "ringfence.io/v1alpha1",
    "kind": "TrafficPolicy",
    "metadata": {"name": "web", "namespace": "shop"},
}


def _parsed(**spec: Any) -> TrafficPolicy:
    document = _HEAD | {"spec": {"targetRef": {"kind": "Service", "name": "web"}} | spec}
    (policy,) = parse_manifests(yaml.safe_dump(document), origin="x.yaml").objects
    assert isinstance(policy, TrafficPolicy)
    return policy


def _refusal(**spec: Any) -> str:
    with pytest.raises(ManifestError) as caught:
        _parsed(**spec)
    return str(caught.value)


def test_a_policy_that_says_nothing_changes_nothing() -> None:
    policy = _parsed()
    assert (policy.namespace, policy.name, policy.service, policy.port) == ("shop", "web", "web", None)
    assert policy.traffic == DEFAULT == Traffic()


def test_everything_at_once() -> None:
    policy = _parsed(
        port=80,
        loadBalancing={
            "policy": "consistent-hash",
            "hashBy": "source-identity",
            "slowStart": "1m30s",
            "subset": {"version": "v2"},
            "weights": [{"matchLabels": {"size": "large"}, "weight": 3}],
        },
        locality={"mode": "prefer", "levels": ["node", "zone"], "spilloverPercent": 50},
        panicThresholdPercent=0,
        healthCheck={
            "type": "tls",
            "port": 8443,
            "interval": "2s",
            "timeout": "500ms",
            "unhealthyThreshold": 4,
            "healthyThreshold": 1,
        },
        outlierDetection={
            "consecutiveConnectFailures": 2,
            "consecutiveEarlyResets": 3,
            "latencyFactor": 4,
            "baseEjectionTime": "500ms",
            "maxEjectionTime": "1h",
            "maxEjectionPercent": 50,
        },
        limits={"maxConnections": 10, "maxPendingConnects": 3, "maxConnectionsPerSource": 2},
        rateLimit={"connectionsPerSecond": 0.5, "bytesPerSecond": 1000, "bytesBurst": 500, "perSource": True},
        faults=[
            {"percent": 10, "delay": "1m"},
            {"percent": 0.5, "refuse": True, "sources": ["spiffe://a/b"]},
            {"percent": 1, "resetAfterBytes": 0},
        ],
        retry={"attempts": 5, "budgetPercent": 10, "minPerSecond": 1.5},
        timeouts={
            "connect": "250ms",
            "handshake": "2s",
            "idle": "0s",
            "lifetime": "24h",
            "halfClosed": "1m",
            "stalledWrite": "30s",
        },
    )
    assert policy.port == 80
    traffic = policy.traffic
    assert traffic.balancing == Balancing(
        policy=LoadBalancing.CONSISTENT_HASH,
        hash_by=traffic.balancing.hash_by,
        slow_start_s=90.0,
        subset={"version": "v2"},
        weights=(WeightRule(labels={"size": "large"}, weight=3),),
    )
    assert traffic.balancing.hash_by == "source-identity"
    assert (traffic.locality.mode, traffic.locality.levels) == (LocalityMode.PREFER, ("node", "zone"))
    assert traffic.health_check == HealthCheck(
        tls=True, port=8443, interval_s=2.0, timeout_s=0.5, unhealthy_threshold=4, healthy_threshold=1
    )
    assert (traffic.outlier.base_ejection_s, traffic.outlier.max_ejection_s) == (0.5, 3600.0)
    assert (traffic.retry.attempts, traffic.retry.budget_percent, traffic.retry.min_per_s) == (5, 10, 1.5)
    assert traffic.timeouts == Timeouts(
        connect_s=0.25, handshake_s=2.0, idle_s=0.0, lifetime_s=86400.0, half_closed_s=60.0, stalled_write_s=30.0
    )
    assert traffic.limits == Limits(max_connections=10, max_pending_connects=3, max_connections_per_source=2)
    assert traffic.rate_limit == RateLimit(
        connections_per_s=0.5, connections_burst=1.0, bytes_per_s=1000.0, bytes_burst=500.0, per_source=True
    )
    assert traffic.faults == (
        Fault(percent=10.0, delay_s=60.0),
        Fault(percent=0.5, refuse=True, sources=("spiffe://a/b",)),
        Fault(percent=1.0, reset_after_bytes=0),
    )
    for field in fields(traffic):
        assert getattr(traffic, field.name) != getattr(DEFAULT, field.name), f"{field.name} is not covered here"


def test_nothing_is_as_good_as_not_written() -> None:
    assert _parsed(retry=None, loadBalancing={"slowStart": None}).traffic == DEFAULT


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"targetRef": {"name": "Web"}}, "spec.targetRef.name: 'Web' is not of the form"),
        ({"targetRef": {"name": "web\n"}}, "spec.targetRef.name: 'web\\n' is not of the form"),
        (
            {"targetRef": {"kind": "Pod", "name": "web"}},
            "spec.targetRef.kind: must be one of Service, ServiceEntry, not 'Pod'",
        ),
        ({"targetRef": {}}, "spec.targetRef.name: is missing; add it"),
        (
            {"loadBalancing": {"polcy": "random"}},
            "spec.loadBalancing.polcy: is not known here; known are hashBy, policy",
        ),
        ({"loadBalancing": {"policy": "fastest"}}, "spec.loadBalancing.policy: must be one of least-latency"),
        ({"loadBalancing": []}, "spec.loadBalancing: must be a mapping, not []"),
        (
            {"loadBalancing": {"slowStart": "5"}},
            "spec.loadBalancing.slowStart: '5' is not of the form ^([0-9]{1,5}(h|m|s|ms)){1,4}$: A duration as",
        ),
        ({"loadBalancing": {"slowStart": 5}}, "spec.loadBalancing.slowStart: must be text, not 5"),
        ({"loadBalancing": {"weights": [{"weight": 1}]}}, "spec.loadBalancing.weights[0].matchLabels: is missing"),
        ({"loadBalancing": {"subset": {}}}, "spec.loadBalancing.subset: must have at least 1 entries, not 0"),
        ({"locality": {"levels": ["zone", "zone"]}}, "spec.locality.levels[1]: 'zone' is there twice; remove one"),
        ({"locality": {"levels": []}}, "spec.locality.levels: must have at least 1 entries, not 0"),
        ({"panicThresholdPercent": 101}, "spec.panicThresholdPercent: must be at most 100, not 101"),
        ({"panicThresholdPercent": True}, "spec.panicThresholdPercent: must be a whole number, not True"),
        ({"port": 0}, "spec.port: must be at least 1, not 0"),
        ({"port": "http"}, "spec.port: must be a whole number, not 'http'"),
        ({"healthCheck": {"type": "http"}}, "spec.healthCheck.type: must be one of tcp, tls"),
        ({"healthCheck": {"interval": "50ms"}}, "spec.healthCheck.interval: must be at least 100ms and at most 1h"),
        ({"healthCheck": {"interval": "2h"}}, "spec.healthCheck.interval: must be at least 100ms and at most 1h"),
        ({"healthCheck": {"timeout": "6s"}}, "spec.healthCheck.timeout: must be more than 0s and at most the interval"),
        ({"healthCheck": {"timeout": "0s"}}, "spec.healthCheck.timeout: must be more than 0s and at most the interval"),
        ({"healthCheck": {"unhealthyThreshold": 0}}, "spec.healthCheck.unhealthyThreshold: must be at least 1"),
        (
            {"outlierDetection": {"baseEjectionTime": "0s"}},
            "spec.outlierDetection.baseEjectionTime: must be more than 0s",
        ),
        (
            {"outlierDetection": {"baseEjectionTime": "2m", "maxEjectionTime": "1m"}},
            "spec.outlierDetection.maxEjectionTime: must not be less than baseEjectionTime",
        ),
        ({"outlierDetection": {"latencyFactor": 0.5}}, "spec.outlierDetection.latencyFactor: must be more than 1"),
        ({"outlierDetection": {"latencyFactor": float("nan")}}, "spec.outlierDetection.latencyFactor: must be"),
        ({"retry": {"attempts": 11}}, "spec.retry.attempts: must be at most 10, not 11"),
        ({"limits": {"maxConnections": 0}}, "spec.limits.maxConnections: must be at least 1, not 0"),
        ({"rateLimit": {"bytesPerSecond": 0}}, "spec.rateLimit.bytesPerSecond: must be more than 0, not 0"),
        (
            {"rateLimit": {"bytesBurst": 5, "connectionsPerSecond": 1}},
            "spec.rateLimit.bytesBurst: is without effect; add bytesPerSecond",
        ),
        ({"rateLimit": {"perSource": True}}, "spec.rateLimit.perSource: is without effect; add connectionsPerSecond"),
        ({"faults": [{"percent": 1}]}, "spec.faults[0]"),
        ({"faults": [{"percent": 1, "refuse": True, "delay": "1s"}]}, "spec.faults[0]"),
        ({"faults": [{"percent": 1, "refuse": False}]}, "spec.faults[0].refuse: must be True, not False"),
        ({"faults": [{"percent": 1, "delay": "0s"}]}, "spec.faults[0].delay: must be more than 0s"),
        ({"faults": [{"percent": 1, "refuse": True, "sources": ["cart"]}]}, "spec.faults[0].sources[0]"),
        (
            {"faults": [{"percent": 60, "refuse": True}, {"percent": 41, "delay": "1s"}]},
            "spec.faults[1].percent: with the entries before it more than 100 for every source",
        ),
        (
            {
                "faults": [
                    {"percent": 60, "refuse": True, "sources": ["spiffe://a/b"]},
                    {"percent": 60, "refuse": True, "sources": ["spiffe://a/c"]},
                    {"percent": 41, "delay": "1s", "sources": ["spiffe://a/c"]},
                ]
            },
            "spec.faults[2].percent: with the entries before it more than 100 for spiffe://a/c",
        ),
        ({"mirror": {}}, "spec.mirror: is not known here"),
    ],
)
def test_mistakes_are_named_where_they_are(spec: dict[str, Any], said: str) -> None:
    assert said in _refusal(**spec)


def test_the_annotation_of_a_service_is_a_policy_of_its_own() -> None:
    assert default_for("least-latency") is DEFAULT
    assert default_for("round-robin").balancing.policy is LoadBalancing.ROUND_ROBIN


def test_the_schema_ships_with_the_package() -> None:
    import tomllib
    from pathlib import Path

    root = Path(__file__).parents[4]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["ca"]
    assert "**/*.json" in patterns
    assert (root / "ca" / "manifests" / SCHEMA_FILE).is_file()
