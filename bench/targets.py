"""The targets: what Ringfence is to reach, against the better of Envoy and HAProxy in the same run, or something else.

A ratio says how Ringfence's figure relates to its reference: the better rival's
median, that of the peer that the target names, or the limit itself where the target
is absolute (memory, registry); there, ``must`` is 1.  Where more is better a target
is met from its figure upwards, else from its figure downwards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

Peers = tuple[str, ...]
RIVALS: Final[Peers] = ("envoy", "haproxy")
_DIRECT: Final[Peers] = ("direct",)
_IPTABLES: Final[Peers] = ("iptables",)
_RELAY: Final[Peers] = ("relay",)
Samples = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
"""measure > peer > figure > one value a round"""


@dataclass(frozen=True, slots=True)
class Target:
    """``figure`` is MEASURE.FIGURE.

    ``limit``: the absolute one that ``must`` and ``stretch`` are in units of; None: the better one of ``against``.
    """

    name: str
    figure: str
    must: float
    stretch: float
    more_is_better: bool
    limit: float | None = None
    against: Peers = RIVALS


def _at_most(name: str, figure: str, must: float, stretch: float, against: Peers = RIVALS) -> Target:
    return Target(name, figure, must, stretch, more_is_better=False, against=against)


def _at_least(name: str, figure: str, must: float, stretch: float, against: Peers = RIVALS) -> Target:
    return Target(name, figure, must, stretch, more_is_better=True, against=against)


def _limit(name: str, figure: str, limit: float, *, stretch: float, more_is_better: bool = False) -> Target:
    """``stretch`` is in the unit of the limit."""
    return Target(name, figure, 1.0, stretch / limit, more_is_better=more_is_better, limit=limit)


TARGETS: Final = (
    _at_most("latency p50, 1 connection", "latency.p50_us", 1.0, 0.9),
    _at_least("requests/s, 64 connections", "rps64.requests_per_s", 1.0, 1.2),
    _at_most("p99, 64 connections", "rps64.p99_us", 1.0, 0.8),
    _at_least("new connections/s", "conns.connections_per_s", 2.0, 3.0),
    _at_least("bulk Gbit/s, up", "bulk.up_gbit_per_s", 1.0, 1.2),
    _at_least("bulk Gbit/s, down", "bulk.down_gbit_per_s", 1.0, 1.2),
    _at_most("p99 of a ping-pong under bulk load", "fairness.p99_us", 1.0, 0.7),
    _at_most("CPU per GB", "bulk.cpu_s_per_gb", 1.0, 0.8),
    _at_most("CPU per 10k requests", "rps64.cpu_s_per_10k_requests", 1.0, 0.8),
    _limit("idle memory of an agent <= 45 MB", "memory.larger_idle_rss_mb", 45, stretch=35),
    _limit("memory per idle connection, each agent <= 20 KB", "memory.larger_rss_kb_per_connection", 20, stretch=10),
    _limit("registry: a lookup <= 2 us", "registry.lookup_us", 2, stretch=1),
    _limit("registry: one endpoint change in force <= 50 ms", "registry.change_ms", 50, stretch=25),
    _limit("registry: an agent with it <= 250 MB", "registry.rss_mb", 250, stretch=125),
    _limit("policies: a decision among 5,000 <= 10 us", "policies.decision_us", 10, stretch=5),
    _limit("policies: one change in force <= 50 ms", "policies.change_slowest_ms", 50, stretch=25),
    _limit(
        "issuing: SVIDs/s on one core >= 1,000",
        "issuing.slowest_svids_per_s",
        1000,
        stretch=2000,
        more_is_better=True,
    ),
    _limit("start of an agent with 200 identities <= 5 s", "start.ready_s", 5, stretch=2.5),
    _limit("cgroup capture adds <= 3 us to a connect", "capture.adds_us", 3, stretch=2),
    _at_most("cgroup capture, beside iptables REDIRECT", "capture.connect_us", 1.0, 0.9, _IPTABLES),
    _limit("connect-time balancing adds <= 5 us to a connect", "connectlb.adds_us", 5, stretch=3),
    _at_most("connect-time balancing, beside iptables DNAT", "connectlb.connect_us", 1.0, 0.9, _IPTABLES),
    _at_most("same-node lane: latency p50, beside direct", "lane.latency_p50_us", 1.05, 1.0, _DIRECT),
    _at_least("same-node lane: requests/s, beside direct", "lane.rps64_requests_per_s", 0.95, 1.0, _DIRECT),
    _at_least("same-node lane: new connections/s, beside direct", "lane.conns_connections_per_s", 0.9, 1.0, _DIRECT),
    _at_least("sockmap: requests/s, beside the relay", "sockmap.requests_per_s", 1.4, 1.6, _RELAY),
)


def judge(samples: Samples) -> list[dict[str, Any]]:
    """One entry a target; ``ratio`` and ``met`` are None where this run has no figures for it."""
    return [_judge(target, samples) for target in TARGETS]


def _judge(target: Target, samples: Samples) -> dict[str, Any]:
    measure, _, figure = target.figure.partition(".")
    peers = samples.get(measure, {})
    ours = peers.get("ringfence", {}).get(figure, ())
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
        "figure": target.figure,
    }
    references: Sequence[float] = () if target.limit is None else [target.limit] * len(ours)
    if target.limit is None:
        theirs = {name: peers[name][figure] for name in target.against if peers.get(name, {}).get(figure)}
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
