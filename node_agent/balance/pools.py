"""What of a service port is kept between picks, until something that it was made from changes.

So a pick costs the same with three endpoints and with a thousand.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from ca.manifests.traffic import Traffic
from node_agent.balance.choosers import Chooser, Draw, HashTable, chooser, table_for
from node_agent.balance.endpoints import EndpointStates
from node_agent.balance.recovery import Recovery
from node_agent.balance.silence import Habit
from node_agent.balance.tiers import Member, Near, Tiers, build, weight_of
from node_agent.model import Endpoint, EndpointAddress, ServicePort

_FORGET_AFTER_S: Final = 60.0


class PoolKey(NamedTuple):
    """``family`` is 4 or 6."""

    service: ServicePort
    family: int


@dataclass(slots=True, eq=False)
class Pool:
    """The endpoints of one service port and family, sorted, for as long as what they were made from stands."""

    candidates: Sequence[Endpoint]
    traffic: Traffic
    near: Near
    valid_until: float
    members: tuple[Member, ...]
    tiers: Tiers
    choosers: tuple[Chooser, ...]
    table: HashTable | None
    addresses: frozenset[EndpointAddress]
    habit: Habit
    recovery: Recovery
    is_stale: bool = False
    used_at: float = 0.0
    latency_looked_at: float = 0.0


class Pools:
    """All of them; least recently used ones are forgotten."""

    def __init__(self, states: EndpointStates, draw: Draw) -> None:
        self._states = states
        self._draw = draw
        self._pools: OrderedDict[PoolKey, Pool] = OrderedDict()

    def get(
        self, service: ServicePort, candidates: Sequence[Endpoint], traffic: Traffic, near: Near, now: float
    ) -> Pool:
        """The pool of these candidates, made anew if they or what is known of them changed."""
        key = PoolKey(service, 6 if candidates and ":" in candidates[0].address.ip else 4)
        pool = self._pools.get(key)
        if (
            pool is None
            or pool.candidates is not candidates
            or pool.traffic is not traffic
            or pool.is_stale
            or now >= pool.valid_until
            or pool.near != near
        ):
            pool = self._pools[key] = self._build(pool, candidates, traffic, near, now)
        pool.used_at = now
        self._pools.move_to_end(key)
        return pool

    def health_changed(self, address: EndpointAddress) -> None:
        """Who may be chosen is to be found out anew, by the services that have this endpoint."""
        for pool in self._pools.values():
            if address in pool.addresses:
                pool.is_stale = True

    def sweep(self, now: float) -> ServicePort | None:
        """Forget the pool that nobody used for longest, if it is long; the service of which none is left then."""
        key, pool = next(iter(self._pools.items()))
        if now - pool.used_at < _FORGET_AFTER_S:
            return None
        del self._pools[key]
        return None if any(PoolKey(key.service, family) in self._pools for family in (4, 6)) else key.service

    def _build(
        self, before: Pool | None, candidates: Sequence[Endpoint], traffic: Traffic, near: Near, now: float
    ) -> Pool:
        if before is not None and before.candidates is not candidates:
            self._note_those_ready_again(before.candidates, candidates, now)
        # Endpoints that are there when a service is first used are not new ones, nor those that nobody used for long.
        since = -math.inf if before is None or before.candidates is candidates else now
        members = tuple(
            Member(each, self._states.use(each, now, since=since), weight)
            for each in candidates
            if each.ready and (weight := weight_of(each, traffic)) > 0
        )
        if before is not None and before.traffic is traffic and before.near == near and before.members == members:
            members = before.members
            table = before.table
            addresses = before.addresses
        else:
            table = table_for(traffic.balancing, members)
            addresses = frozenset(each.endpoint.address for each in members)
        recovery = Recovery() if before is None else before.recovery
        recovery.keep(members)
        tiers = build(members, traffic, near, now)
        if before is not None and before.traffic is traffic and before.tiers == tiers and before.table is table:
            choosers = before.choosers  # round-robin goes on where it was
        else:
            choosers = tuple(chooser(traffic.balancing, each.members, self._draw, table) for each in tiers.tiers)
        ends = [until for each in members if (until := each.state.outlier.ejected_until) is not None and until > now]
        return Pool(
            candidates,
            traffic,
            near,
            min(ends, default=math.inf),
            members,
            tiers,
            choosers,
            table,
            addresses,
            Habit() if before is None else before.habit,
            recovery,
            latency_looked_at=before.latency_looked_at if before is not None else now,
        )

    def _note_those_ready_again(self, before: Sequence[Endpoint], now_: Sequence[Endpoint], now: float) -> None:
        """An endpoint that has become ready again is not judged by how it was when it failed."""
        were_not = {each.address for each in before if not each.ready}
        for each in now_ if were_not else ():
            if each.ready and each.address in were_not and (state := self._states.get(each)) is not None:
                state.latency = state.silence = None
                state.since = now
