"""Choose an endpoint for a connection, and remember how it did.

Sans-I/O: no clock and no task; callers pass ``now`` (monotonic seconds), and
the source of randomness once.

    candidates of the registry
      > those that may be chosen, in tiers     tiers.py     readiness, subset, health, ejection, locality, panic
      > one of a tier                          choosers.py  the policy, weights, slow start
      > Pick                                   pick.py     how it goes is told to the endpoint's state (endpoints.py,
                                                           outlier.py), and to what knows of others (recovery.py)

What the first step finds is kept (pools.py).  The two addresses of a workload, of
IPv4 and IPv6, are two endpoints, each judged by its own connections: what is
broken is often one family alone (a program that listens on 0.0.0.0 only), and
then the other one is what still serves.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from ca.manifests.traffic import HashBy, LoadBalancing, Traffic, default_for
from node_agent.balance.budget import RetryBudget
from node_agent.balance.choosers import chooser
from node_agent.balance.endpoints import EndpointState, EndpointStates
from node_agent.balance.loads import EndpointLoad, shown
from node_agent.balance.no_endpoints import NoEndpoints, why_none
from node_agent.balance.outlier import Why, may_eject_another
from node_agent.balance.pick import Pick
from node_agent.balance.pools import Pool, Pools
from node_agent.balance.recovery import Place
from node_agent.balance.tiers import Member, Near
from node_agent.model import Endpoint, EndpointAddress, EndpointKey, ServicePort

if TYPE_CHECKING:
    from random import Random

_LATENCY_PEERS: Final = 3  # fewer have no median to be far off from
_LATENCY_FLOOR_S: Final = 0.005  # below it "many times the median" is noise
_LOOK_AT_LATENCY_S: Final = 1.0


class Client(NamedTuple):
    """Who connects, as far as the choice depends on it; ``address`` and ``identity`` for a consistent hash."""

    near: Near = Near()
    address: str = ""
    identity: str = ""


NOWHERE: Final = Client()


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
        self._pools = Pools(self._states, rng.random)
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
        pool = self._pools.get(service, candidates, traffic or default_for(service.load_balancing), client.near, now)
        trial = self._trial(pool, now) if pool.recovery.is_needed and not exclude else None
        member = self._choose(pool, client, exclude, now) if trial is None else trial[0]
        if member is None:
            raise NoEndpoints(why_none(service, candidates, pool.members, pool.tiers))
        self._states.used(member.endpoint, member.state, now)
        if not exclude:
            self._budget(service, pool.traffic, now).connect(pool.traffic.retry, now)
        pick = Pick(self, pool, member, now, trial=None if trial is None else trial[1])
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
        pool = self._pools.get(service, candidates, traffic, near, now)
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
        self._pools.health_changed(address)
        for tell in self.on_health_changed:
            tell(address)

    def eject(self, pool: Pool, endpoint: Endpoint, state: EndpointState, why: Why | None, now: float) -> None:
        """Eject an endpoint if there is a reason and enough others are left."""
        if why is None:
            return
        config = pool.traffic.outlier
        ejected = sum(each.state.outlier.is_ejected(now) for each in pool.members if each.state is not state)
        if may_eject_another(ejected=ejected, of=len(pool.members), max_percent=config.max_ejection_percent):
            state.outlier.eject(why, config, now)
        self.health_changed(endpoint.address)

    def came_back(self, pool: Pool, state: EndpointState, now: float) -> bool:
        """A connect that did not fail; whether most of its zone or node had failed, so that this one begins anew."""
        is_back = pool.recovery.answered(state, now)
        if is_back and pool.traffic.balancing.policy is LoadBalancing.CONSISTENT_HASH:
            for each in pool.recovery.returning():
                each.state.outlier.may_be_probed(now)
        return is_back

    def look_at_latency(self, pool: Pool, now: float) -> None:
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

    def _trial(self, pool: Pool, now: float) -> tuple[Member, Place] | None:
        """The endpoint that this connection finds out about, of a zone or node that is lost or comes back."""
        policy = pool.traffic.balancing.policy
        if policy is LoadBalancing.CONSISTENT_HASH:
            return None  # a client has its place
        found = pool.recovery.to_try(now, only_ejected=policy is not LoadBalancing.LEAST_LATENCY)
        if found is not None:
            found[0].state.outlier.may_be_probed(now)
        return found

    def _choose(self, pool: Pool, client: Client, exclude: Collection[EndpointKey], now: float) -> Member | None:
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
        if (unused := self._pools.sweep(now)) is not None:
            self._budgets.pop(unused, None)
