"""The targets: what Ringfence is to reach, against the better of Envoy and HAProxy in the same run.

A ratio says how Ringfence's figure relates to its reference: the better rival's
median, or the limit itself where the target is absolute (memory, registry); there,
``must`` is 1.  Where more is better a target is met from its figure upwards, else
from its figure downwards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

RIVALS: Final = ("envoy", "haproxy")
Samples = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
"""measure > peer > figure > one value a round"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """``limit``: the absolute one that ``must`` and ``stretch`` are given in units of; None: the better rival."""

    name: str
    measure: str
    figure: str
    must: float
    stretch: float
    more_is_better: bool = False
    limit: float | None = None


TARGETS: Final = (
    Target(name="latency p50, 1 connection", measure="latency", figure="p50_us", must=1.0, stretch=0.9),
    Target(
        name="requests/s, 64 connections",
        measure="rps64",
        figure="requests_per_s",
        must=1.0,
        stretch=1.2,
        more_is_better=True,
    ),
    Target(name="p99, 64 connections", measure="rps64", figure="p99_us", must=1.0, stretch=0.8),
    Target(
        name="new connections/s",
        measure="conns",
        figure="connections_per_s",
        must=2.0,
        stretch=3.0,
        more_is_better=True,
    ),
    Target(name="bulk Gbit/s, up", measure="bulk", figure="up_gbit_per_s", must=1.0, stretch=1.2, more_is_better=True),
    Target(
        name="bulk Gbit/s, down", measure="bulk", figure="down_gbit_per_s", must=1.0, stretch=1.2, more_is_better=True
    ),
    Target(name="p99 of a ping-pong under bulk load", measure="fairness", figure="p99_us", must=1.0, stretch=0.7),
    Target(name="CPU per GB", measure="bulk", figure="cpu_s_per_gb", must=1.0, stretch=0.8),
    Target(name="CPU per 10k requests", measure="rps64", figure="cpu_s_per_10k_requests", must=1.0, stretch=0.8),
    Target(
        name="idle memory of an agent <= 45 MB",
        measure="memory",
        figure="larger_idle_rss_mb",
        must=1.0,
        stretch=35 / 45,
        limit=45,
    ),
    Target(
        name="memory per idle connection, each agent <= 20 KB",
        measure="memory",
        figure="larger_rss_kb_per_connection",
        must=1.0,
        stretch=0.5,
        limit=20,
    ),
    Target(name="registry: a lookup <= 2 us", measure="registry", figure="lookup_us", must=1.0, stretch=0.5, limit=2),
    Target(
        name="registry: one endpoint change in force <= 50 ms",
        measure="registry",
        figure="change_ms",
        must=1.0,
        stretch=0.5,
        limit=50,
    ),
    Target(
        name="registry: an agent with it <= 250 MB",
        measure="registry",
        figure="rss_mb",
        must=1.0,
        stretch=0.5,
        limit=250,
    ),
    Target(
        name="policies: a decision among 5,000 <= 10 us",
        measure="policies",
        figure="decision_us",
        must=1.0,
        stretch=0.5,
        limit=10,
    ),
    Target(
        name="policies: one change in force <= 50 ms",
        measure="policies",
        figure="change_slowest_ms",
        must=1.0,
        stretch=0.5,
        limit=50,
    ),
    Target(
        name="issuing: SVIDs/s on one core >= 1,000",
        measure="issuing",
        figure="slowest_svids_per_s",
        must=1.0,
        stretch=2.0,
        more_is_better=True,
        limit=1000,
    ),
    Target(
        name="start of an agent with 200 identities <= 5 s",
        measure="start",
        figure="ready_s",
        must=1.0,
        stretch=0.5,
        limit=5,
    ),
)


def judge(samples: Samples) -> list[dict[str, Any]]:
    """One entry a target; ``ratio`` and ``met`` are None where this run has no figures for it."""
    return [_judge(target, samples) for target in TARGETS]


def _judge(target: Target, samples: Samples) -> dict[str, Any]:
    peers = samples.get(target.measure, {})
    ours = peers.get("ringfence", {}).get(target.figure, ())
    verdict: dict[str, Any] = {
        "measure": target.name,
        "ratio": None,
        "must": target.must,
        "stretch": round(target.stretch, 3),
        "met": None,
        "stretch_met": None,
        "more_is_better": target.more_is_better,
        "spread": None,
        "value": median(ours) if ours else None,
        "reference": target.limit,
        "reference_is": "limit",
        "figure": f"{target.measure}.{target.figure}",
    }
    references: Sequence[float] = () if target.limit is None else [target.limit] * len(ours)
    if target.limit is None:
        theirs = {name: peers[name][target.figure] for name in RIVALS if peers.get(name, {}).get(target.figure)}
        if theirs:
            choose = max if target.more_is_better else min
            best = choose(theirs, key=lambda name: median(theirs[name]))
            references = theirs[best]
            verdict |= {"reference": median(references), "reference_is": best}
    if not ours or not references:
        return verdict
    ratio = median(ours) / median(references)
    each = [one / other for one, other in zip(ours, references, strict=False)]
    return verdict | {
        "ratio": round(ratio, 3),
        "spread": [round(min(each), 3), round(max(each), 3)],
        "met": _reaches(target, ratio, target.must),
        "stretch_met": _reaches(target, ratio, target.stretch),
    }


def _reaches(target: Target, ratio: float, wanted: float) -> bool:
    return ratio >= wanted if target.more_is_better else ratio <= wanted
