"""Which endpoints may be chosen now, and which share of the connections goes to the near ones.

Sans-I/O.  Of the endpoints that are ready, belong to the subset and have a
weight, those are used that are healthy and not ejected; but if they are too few
(the panic threshold), all of them, because "everything ejected" must not mean
"nothing served".

With locality the endpoints are sorted into levels as seen from the client (same
node, zone, region, the rest).  As with Envoy's priorities, a level gets what
share of its endpoints is healthy, over the spillover threshold: at 70 %, a level
with 70 % or more healthy endpoints gets everything, one with 35 % gets half, and
the next level the rest.  If all levels together have less than that, what there
is is shared in proportion.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ca.manifests.traffic import LocalityMode, LocalityPreference, Traffic
from node_agent.balance.endpoints import EndpointState
from node_agent.model import Endpoint, Workload


class Near(NamedTuple):
    """Where the clients are; empty text where unknown."""

    node: str = ""
    zone: str = ""
    region: str = ""

    @classmethod
    def of(cls, workload: Workload) -> "Near":
        return cls(workload.node, workload.locality.zone, workload.locality.region)


class Member(NamedTuple):
    """An endpoint that may be chosen."""

    endpoint: Endpoint
    state: EndpointState
    weight: float


@dataclass(frozen=True, slots=True)
class Tier:
    """Members among which one is chosen; ``share`` of all connections goes here, the shares add up to 1."""

    members: tuple[Member, ...]
    share: float


@dataclass(frozen=True, slots=True)
class Tiers:
    """``is_panic``: health is not looked at, because too few are healthy."""

    tiers: tuple[Tier, ...]
    is_panic: bool


def weight_of(endpoint: Endpoint, traffic: Traffic) -> float:
    """The weight of an endpoint, 0.0 if it is not in the subset."""
    workload = endpoint.agent_of
    labels = workload.labels if workload is not None else {}
    balancing = traffic.balancing
    if not balancing.subset.items() <= labels.items():
        return 0.0
    for rule in balancing.weights:
        if rule.labels.items() <= labels.items():
            return float(rule.weight)
    return 1.0


def build(members: Sequence[Member], traffic: Traffic, near: Near, now: float) -> Tiers:
    """Sort the members into tiers; none if nobody may be chosen."""
    healthy = [each for each in members if each.state.may_serve(now)]
    is_panic = len(healthy) * 100 < traffic.panic_threshold_percent * len(members)
    usable = list(members) if is_panic or not healthy else healthy
    if not usable or (not healthy and not traffic.panic_threshold_percent):
        return Tiers((), is_panic)
    preference = traffic.locality
    if preference.mode is LocalityMode.OFF:
        return Tiers((Tier(tuple(usable), 1.0),), is_panic)
    return Tiers(_by_level(members, set(map(id, usable)), preference, near), is_panic)


def is_nearest(endpoint: Endpoint, preference: LocalityPreference, near: Near) -> bool:
    """Whether it is in the level that is used as long as it is healthy; of a service without levels all are."""
    return preference.mode is LocalityMode.OFF or _level(endpoint.agent_of, preference.levels, near) == 0


def _by_level(
    members: Sequence[Member], usable: set[int], preference: LocalityPreference, near: Near
) -> tuple[Tier, ...]:
    everyone: list[list[Member]] = [[] for _ in range(len(preference.levels) + 1)]
    for each in members:
        everyone[_level(each.endpoint.agent_of, preference.levels, near)].append(each)
    if preference.mode is LocalityMode.STRICT:
        everyone.pop()
    found: list[tuple[tuple[Member, ...], float]] = []
    left = 1.0
    for level in everyone:
        there = tuple(each for each in level if id(each) in usable)
        if there:
            share = min(1.0, len(there) / len(level) * 100 / max(1, preference.spillover_percent))
            found.append((there, min(left, share)))
            left -= found[-1][1]
    total = sum(share for _, share in found)
    return tuple(Tier(there, share / total) for there, share in found if share > 0)


def _level(workload: Workload | None, levels: tuple[str, ...], near: Near) -> int:
    """The index of the nearest level that the client and the endpoint share; their number if none."""
    if workload is not None:
        there = Near.of(workload)
        for index, level in enumerate(levels):
            if _is_same(level, there, near):
                return index
    return len(levels)


def _is_same(level: str, there: Near, near: Near) -> bool:
    match level:
        case "node":
            return bool(near.node) and there.node == near.node
        case "zone":
            return bool(near.zone) and (there.zone, there.region) == (near.zone, near.region)
        case _:
            return bool(near.region) and there.region == near.region
