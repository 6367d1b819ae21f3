"""Choose an endpoint for a connection, and remember how it did.

Sans-I/O: no clock and no task; callers pass ``now`` (monotonic seconds), and
the source of randomness once.

    candidates of the registry
      > those that may be chosen, in tiers     tiers.py     readiness, subset, health, ejection, locality, panic
      > one of a tier                          choosers.py  the policy, weights, slow start
      > Pick                                   how it goes is told to the endpoint's state (endpoints.py, outlier.py)

What the first step finds is kept for each service port and IP family until
something that it was made from changes, so that a pick costs the same with three
endpoints and with a thousand.

A pick ends exactly once:

    picked --connected--> counted --release--> ended
    picked --failed-----> ended            picked --release--> ended (given up)
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from ca.manifests.traffic import HashBy, LoadBalancing, Traffic, default_for
from node_agent.balance.budget import RetryBudget
from node_agent.balance.choosers import Chooser, HashTable, chooser, table_for
from node_agent.balance.endpoints import EndpointState, EndpointStates
from node_agent.balance.latency import PeakEwma
from node_agent.balance.loads import EndpointLoad, shown
from node_agent.balance.no_endpoints import NoEndpoints, why_none
from node_agent.balance.outlier import Why, may_eject_another
from node_agent.balance.silence import Answer, Habit, Silence, Waiting
from node_agent.balance.tiers import Member, Near, Tiers, build, weight_of
from node_agent.model import Endpoint, EndpointAddress, EndpointKey, ServicePort

if TYPE_CHECKING:
    from random import Random

# A refused connect is over in no time: it must not look like a fast endpoint.
# The default connect timeout of most clients' first retry (Linux's initial RTO).
_REFUSAL_LATENCY_S: Final = 1.0
_FORGET_AFTER_S: Final = 60.0
_LATENCY_PEERS: Final = 3  # fewer have no median to be far off from
_LATENCY_FLOOR_S: Final = 0.005  # below it "many times the median" is noise
_LOOK_AT_LATENCY_S: Final = 1.0


class Client(NamedTuple):
    """Who connects, as far as the choice depends on it; ``address`` and ``identity`` for a consistent hash."""

    near: Near = Near()
    address: str = ""
    identity: str = ""


NOWHERE: Final = Client()


@dataclass(slots=True, eq=False)
class _Pool:
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
    is_stale: bool = False
    used_at: float = 0.0
    latency_looked_at: float = 0.0


class Pick:
    """One connection's endpoint.  Its methods may be called in any order; only the first end counts."""

    __slots__ = (
        "_balancer",
        "_ended",
        "_is_connecting",
        "_picked_at",
        "_pool",
        "_state",
        "_waiting",
        "endpoint",
        "is_probe",
    )

    def __init__(self, balancer: "Balancer", pool: _Pool, member: Member, now: float) -> None:
        self.endpoint = member.endpoint
        self._state = member.state
        self._balancer = balancer
        self._pool = pool
        self._picked_at = now
        self._ended = False
        self._is_connecting = True
        self._waiting: tuple[Silence, Waiting] | None = None
        self._state.open_connections += 1
        self._state.waits(now)
        self.is_probe = self._state.outlier.picked(now)
        if self._state.silence is not None:
            self._state.silence.picked()

    def connected(self, now: float) -> None:
        """The destination accepted the connection; the time since the pick is the sample."""
        if not self._ended:
            state, sample_s = self._state, now - self._picked_at
            self._answered(now)
            if state.latency is None:
                state.latency = PeakEwma(sample_s, now)
            else:
                state.latency.observe(sample_s, now)
            if state.outlier.connected(now):
                state.since = now
                self._balancer.health_changed(self.endpoint.address)
            self.is_probe = False
            self._balancer.look_at_latency(self._pool, now)

    def carries(self, answer: Answer, now: float) -> None:
        """The bytes begin to move; whether the endpoint says something can be seen by ``answer``."""
        pool = self._pool
        if pool.traffic.balancing.policy is LoadBalancing.LEAST_LATENCY and len(pool.members) > 1 and not self._ended:
            pool.habit.began()
            silence = self._state.silence
            if silence is None:
                silence = self._state.silence = Silence(pool.habit)
            waiting = Waiting(answer, pool.habit, now)
            silence.begin(waiting, endpoints=len(pool.members), now=now)
            self._waiting = (silence, waiting)

    def failed(self, now: float) -> None:
        """The destination could not be connected to; ends the pick."""
        if not self._ended:
            state, waited_s = self._state, now - self._picked_at
            if state.latency is None:
                state.latency = PeakEwma(0.0, now)
            if waited_s < _REFUSAL_LATENCY_S:
                state.latency.penalize(_REFUSAL_LATENCY_S, now)
            else:
                state.latency.observe(waited_s, now)
            why = state.outlier.connect_failed(self._pool.traffic.outlier, now)
            self._balancer.eject(self._pool, self.endpoint, state, why, now)
            self.release(now)

    def said_something(self) -> None:
        """The endpoint sent a byte."""
        self._state.outlier.said_something()

    def reset_early(self, now: float) -> None:
        """The endpoint reset the connection before it had sent a byte."""
        why = self._state.outlier.reset_early(self._pool.traffic.outlier)
        self._balancer.eject(self._pool, self.endpoint, self._state, why, now)

    def release(self, now: float) -> None:
        """The connection is over, however far it got; harmless when already ended."""
        if not self._ended:
            self._ended = True
            self._answered(now)
            if self._waiting is not None:
                silence, waiting = self._waiting
                silence.end(waiting, now)
            self._state.open_connections -= 1
            self._state.used_at = now
            if self.is_probe:
                self._state.outlier.given_up()
                self._balancer.health_changed(self.endpoint.address)

    def _answered(self, now: float) -> None:
        if self._is_connecting:
            self._is_connecting = False
            self._state.answered(now)


class Balancer:
    """Picks endpoints and remembers how they did.

    Args:
        rng: where the draws come from; a seeded one makes picks repeatable.

    ``on_health_changed`` is called with each endpoint that may be chosen now, or
    no longer.
    """

    def __init__(self, *, rng: "Random") -> None:
        self._random = rng.random
        self._states = EndpointStates()
        self._pools: OrderedDict[tuple[ServicePort, int], _Pool] = OrderedDict()
        self._budgets: dict[ServicePort, RetryBudget] = {}
        self.on_health_changed: list[Callable[[EndpointAddress], None]] = []

    def pick(
        self,
        service: ServicePort,
        candidates: Sequence[Endpoint],
        now: float,
        *,
        traffic: Traffic | None = None,
        client: Client = NOWHERE,
        exclude: Collection[EndpointKey] = (),
    ) -> Pick:
        """Choose one of the candidates and count a connection to it.

        Constant time when ``candidates`` and ``traffic`` are the registry's own
        values (they are recognised by identity) and ``exclude`` is empty.

        Args:
            candidates: of one IP family; those that are not ready are passed over.
            traffic: what the service's policy wants; None for the defaults.
            exclude: endpoints that this connection has tried already.

        Raises:
            NoEndpoints: none may be chosen, or none is left.
        """
        pool = self._pool(service, candidates, traffic or default_for(service.load_balancing), client.near, now)
        member = self._choose(pool, client, exclude, now)
        if member is None:
            raise NoEndpoints(why_none(service, candidates, pool.members, pool.tiers))
        self._states.used(member.endpoint, member.state, now)
        if not exclude:
            self._budget(service, pool.traffic, now).connect(pool.traffic.retry, now)
        pick = Pick(self, pool, member, now)
        if pick.is_probe:
            self.health_changed(member.endpoint.address)
        self._sweep(now)
        return pick

    def shares(
        self, service: ServicePort, candidates: Sequence[Endpoint], now: float, *, traffic: Traffic, near: Near
    ) -> list[tuple[Endpoint, float]]:
        """Who may be chosen now, and for which share of the connections; nobody when that is more than shares.

        That is: health is not looked at (panic), or one that was ejected is being tried.
        """
        pool = self._pool(service, candidates, traffic, near, now)
        if pool.tiers.is_panic:
            return []
        found: list[tuple[Endpoint, float]] = []
        for tier in pool.tiers.tiers:
            total = sum(each.weight for each in tier.members)
            if any(each.state.outlier.ejected_until is not None for each in tier.members):
                return []
            found += [(each.endpoint, tier.share * each.weight / total) for each in tier.members]
        return found

    def may_retry(self, service: ServicePort, traffic: Traffic, now: float) -> bool:
        """Whether a connection that failed to connect may try another endpoint; if so, its budget pays for it."""
        return self._budget(service, traffic, now).take(traffic.retry, now)

    def _budget(self, service: ServicePort, traffic: Traffic, now: float) -> RetryBudget:
        budget = self._budgets.get(service)
        if budget is None:
            budget = self._budgets[service] = RetryBudget(traffic.retry, now)
        return budget

    def load_of(self, endpoint: Endpoint, now: float) -> EndpointLoad:
        """What operators are shown."""
        state = self._states.get(endpoint)
        return EndpointLoad(0, None) if state is None else shown(state, now)

    def loads(self, now: float) -> Iterator[tuple[EndpointAddress, str, EndpointLoad]]:
        """What is known of all endpoints: address, uid of the workload (or empty), load.  Not to be held."""
        for (address, uid), state in self._states.items():
            yield address, uid, shown(state, now)

    def set_unhealthy(self, endpoint: Endpoint, is_unhealthy: bool, now: float, *, why: str = "") -> None:
        """What active health checks found, and ``why`` for operators."""
        state = self._states.use(endpoint, now)
        state.why_unhealthy = why if is_unhealthy else ""
        if state.is_unhealthy != is_unhealthy:
            state.is_unhealthy = is_unhealthy
            if not is_unhealthy:
                state.since = now
                state.latency = state.silence = None  # it is not judged by how it was when it failed
            self.health_changed(endpoint.address)

    # -- for picks ----------------------------------------------------------------

    def health_changed(self, address: EndpointAddress) -> None:
        """Who may be chosen is to be found out anew, by the services that have this endpoint."""
        for pool in self._pools.values():
            if address in pool.addresses:
                pool.is_stale = True
        for tell in self.on_health_changed:
            tell(address)

    def eject(self, pool: _Pool, endpoint: Endpoint, state: EndpointState, why: Why | None, now: float) -> None:
        """Eject an endpoint if there is a reason and enough others are left."""
        if why is None:
            return
        config = pool.traffic.outlier
        ejected = sum(each.state.outlier.is_ejected(now) for each in pool.members if each.state is not state)
        if may_eject_another(ejected=ejected, of=len(pool.members), max_percent=config.max_ejection_percent):
            state.outlier.eject(why, config, now)
        else:
            state.outlier.given_up()
        self.health_changed(endpoint.address)

    def look_at_latency(self, pool: _Pool, now: float) -> None:
        """Eject the slowest endpoint if it is far off the median of the others; at most once a second."""
        factor = pool.traffic.outlier.latency_factor
        if not factor or not pool.traffic.outlier.enabled or now - pool.latency_looked_at < _LOOK_AT_LATENCY_S:
            return
        pool.latency_looked_at = now
        known = sorted(
            (
                (each.state.latency.at(now), index)
                for index, each in enumerate(pool.members)
                if each.state.latency is not None and each.state.outlier.ejected_until is None
            ),
        )
        if len(known) < _LATENCY_PEERS:
            return
        slowest_s, index = known[-1]
        median_s = known[(len(known) - 1) // 2][0]
        if slowest_s > max(median_s * factor, _LATENCY_FLOOR_S):
            slowest = pool.members[index]
            self.eject(pool, slowest.endpoint, slowest.state, Why.LATENCY, now)

    # -- what is kept between picks ---------------------------------------------------

    def _pool(
        self, service: ServicePort, candidates: Sequence[Endpoint], traffic: Traffic, near: Near, now: float
    ) -> _Pool:
        key = (service, 6 if candidates and ":" in candidates[0].address.ip else 4)
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

    def _build(
        self, before: _Pool | None, candidates: Sequence[Endpoint], traffic: Traffic, near: Near, now: float
    ) -> _Pool:
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
        tiers = build(members, traffic, near, now)
        if before is not None and before.traffic is traffic and before.tiers == tiers and before.table is table:
            choosers = before.choosers  # round-robin goes on where it was
        else:
            choosers = tuple(chooser(traffic.balancing, each.members, self._random, table) for each in tiers.tiers)
        ends = [until for each in members if (until := each.state.outlier.ejected_until) is not None and until > now]
        return _Pool(
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
            latency_looked_at=before.latency_looked_at if before is not None else now,
        )

    def _note_those_ready_again(self, before: Sequence[Endpoint], now_: Sequence[Endpoint], now: float) -> None:
        """An endpoint that has become ready again is not judged by how it was when it failed."""
        were_not = {each.address for each in before if not each.ready}
        for each in now_ if were_not else ():
            if each.ready and each.address in were_not and (state := self._states.get(each)) is not None:
                state.latency = state.silence = None
                state.since = now

    def _choose(self, pool: _Pool, client: Client, exclude: Collection[EndpointKey], now: float) -> Member | None:
        tiers = pool.tiers.tiers
        if not tiers:
            return None
        balancing = pool.traffic.balancing
        key = client.address if balancing.hash_by is HashBy.SOURCE_ADDRESS else client.identity
        number = 0
        if len(tiers) > 1:
            drawn = self._random()
            while number < len(tiers) - 1 and drawn >= tiers[number].share:
                drawn -= tiers[number].share
                number += 1
        if not exclude:
            return pool.choosers[number].choose(now, key)
        # A retry: what is left of the tier, or else of all.
        for members in (tiers[number].members, tuple(each for tier in tiers for each in tier.members), pool.members):
            left = tuple(each for each in members if each.endpoint.key not in exclude)
            if left:
                return chooser(balancing, left, self._random, pool.table).choose(now, key)
        return None

    def _sweep(self, now: float) -> None:
        self._states.sweep(now)
        key, pool = next(iter(self._pools.items()))
        if now - pool.used_at >= _FORGET_AFTER_S:
            del self._pools[key]
            if not any((key[0], family) in self._pools for family in (4, 6)):
                self._budgets.pop(key[0], None)
