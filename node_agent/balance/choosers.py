"""How one endpoint of a tier is chosen: one class a policy.

Sans-I/O; ``draw`` gives numbers in [0, 1).

*least-latency* and *least-connections* draw two different members and take the
one that costs less.  Drawing two and not looking at all avoids both the herd
(everybody to the best one) and the cost of a search.  *least-latency* costs
estimated connect latency times (open connections + 1); of a member that was
never connected to, nothing is known but its open connections: it counts as
being as fast as the other one, so it is neither starved nor flooded.  One that is
silent (silence.py) costs what it has been silent for.

If both of two are bad (half a service is gone, or all but one of three are far
away), the better one is bad too.  So when it costs many times what was taken of
late, and enough for a client to notice, *least-latency* draws again.

Weights are shares of the draws, and with weights the two may be the same one: only then do those of equal
cost get their shares.  Open connections count by weight, too.  A member in slow start is drawn less often:
from a tenth of its share to all of it, in proportion to the time.
"""

import heapq
from bisect import bisect
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Final, Protocol

from ca.manifests.traffic import Balancing, LoadBalancing
from node_agent.balance.maglev import Maglev
from node_agent.balance.tiers import Member
from node_agent.model import Endpoint

Draw = Callable[[], float]
_SLOWEST_SHARE: Final = 0.1  # Envoy's min_weight_percent
_PAIRS: Final = 4  # with half of all endpoints gone, one connection in 256 meets two of them each time
_FAR_OFF: Final = 4.0
_NOT_FAR_S: Final = 0.01  # within a region; below it, going far is better than crowding the near ones
_NEWS: Final = 0.1
_DRAWS: Final = 8  # for one that is not in slow start, or a second one; then whichever came


class Chooser(Protocol):
    """Chooses among the members that it was made for."""

    def choose(self, now: float, key: str) -> Member:
        """``key`` is what a consistent hash goes by."""


class HashTable:
    """The Maglev table of all members, whether they may be chosen now or not.

    Health comes and goes too often to fill a table each time, which takes up to 0.1 s.
    """

    __slots__ = ("everyone", "maglev")

    def __init__(self, everyone: Sequence[Member]) -> None:
        self.everyone = everyone
        self.maglev = Maglev([_name(each.endpoint) for each in everyone], [each.weight for each in everyone])


def _name(endpoint: Endpoint) -> str:
    """The same on every node, and no other one's."""
    via = "" if endpoint.egress is None else f" {endpoint.egress.name}"
    return f"{endpoint.address}{via}"


def table_for(balancing: Balancing, everyone: Sequence[Member]) -> HashTable | None:
    """What ``chooser`` needs for a consistent hash; None for the other policies, and of nobody."""
    is_wanted = balancing.policy is LoadBalancing.CONSISTENT_HASH and everyone
    return HashTable(everyone) if is_wanted else None


def chooser(balancing: Balancing, members: Sequence[Member], draw: Draw, table: HashTable | None = None) -> Chooser:
    """Make the chooser of a policy; ``members`` are not empty, and among those of the ``table``."""
    match balancing.policy:
        case LoadBalancing.LEAST_LATENCY:
            return BetterOfTwo(Draws(members, draw, balancing.slow_start_s), by_latency=True)
        case LoadBalancing.LEAST_CONNECTIONS:
            return BetterOfTwo(Draws(members, draw, balancing.slow_start_s), by_latency=False)
        case LoadBalancing.RANDOM:
            return AtRandom(Draws(members, draw, balancing.slow_start_s))
        case LoadBalancing.ROUND_ROBIN:
            return RoundRobin(members, draw, balancing.slow_start_s)
        case LoadBalancing.CONSISTENT_HASH:
            return ConsistentHash(members, table or HashTable(members))


def _is_held_back(member: Member, slow_start_s: float, now: float, draw: Draw) -> bool:
    """Whether a member in slow start is passed over this time."""
    age_s = now - member.state.since
    return age_s < slow_start_s and draw() >= max(_SLOWEST_SHARE, age_s / slow_start_s)


class Draws:
    """Draws members by weight."""

    __slots__ = ("_draw", "_members", "_slow_start_s", "_total", "_upto", "count", "mean_weight")

    def __init__(self, members: Sequence[Member], draw: Draw, slow_start_s: float) -> None:
        self._members = members
        self._draw = draw
        self._slow_start_s = slow_start_s
        self.count = len(members)
        weights = [each.weight for each in members]
        self._upto = None if min(weights) == max(weights) else list(accumulate(weights))
        self._total = sum(weights)
        self.mean_weight = self._total / self.count

    def one(self, now: float) -> Member:
        member = self._any()
        if self._slow_start_s:
            for _ in range(_DRAWS):
                if not _is_held_back(member, self._slow_start_s, now, self._draw):
                    break
                member = self._any()
        return member

    def two(self, now: float) -> tuple[Member, Member]:
        """Two members, different ones if all weigh the same; there are at least two."""
        if self._upto is None and not self._slow_start_s:
            first = int(self._draw() * self.count)
            second = int(self._draw() * (self.count - 1))
            second += second >= first
            return self._members[first], self._members[second]
        one = other = self.one(now)
        if self._upto is not None:
            return one, self.one(now)
        for _ in range(_DRAWS):
            other = self.one(now)
            if other is not one:
                break
        return one, other

    def _any(self) -> Member:
        if self._upto is None:
            return self._members[int(self._draw() * self.count)]
        return self._members[min(bisect(self._upto, self._draw() * self._total), self.count - 1)]


class AtRandom:
    """Whichever is drawn."""

    __slots__ = ("_draws",)

    def __init__(self, draws: Draws) -> None:
        self._draws = draws

    def choose(self, now: float, key: str) -> Member:
        return self._draws.one(now)


class BetterOfTwo:
    """The one of two that costs less."""

    __slots__ = ("_by_latency", "_draws", "_usual_s")

    def __init__(self, draws: Draws, *, by_latency: bool) -> None:
        self._draws = draws
        self._by_latency = by_latency
        self._usual_s = 0.0  # what those that were taken cost of late

    def choose(self, now: float, key: str) -> Member:
        if self._draws.count == 1:
            return self._draws.one(now)
        if not self._by_latency:
            one, other = self._draws.two(now)
            return one if self._load(one) <= self._load(other) else other
        better, cost_s = self._cheaper(*self._draws.two(now), now)
        for _ in range(_PAIRS - 1):
            if cost_s is None or cost_s <= max(self._usual_s * _FAR_OFF, _NOT_FAR_S):
                break
            better, cost_s = self._cheaper(*self._draws.two(now), now)
        if cost_s is not None:
            self._usual_s += (cost_s - self._usual_s) * _NEWS
        return better

    def _load(self, member: Member) -> float:
        """Its open connections, one of somebody who has the mean weight counting as one."""
        return member.state.open_connections * self._draws.mean_weight / member.weight

    def _cheaper(self, one: Member, other: Member, now: float) -> tuple[Member, float | None]:
        """The one that costs less, and its cost where the latency of both is known."""
        load, other_load = self._load(one) + 1.0, self._load(other) + 1.0
        latency_s, other_latency_s = one.state.expected_s(now), other.state.expected_s(now)
        if latency_s is None or other_latency_s is None:
            return (one if load <= other_load else other), None
        cost_s, other_cost_s = load * latency_s, other_load * other_latency_s
        return (one, cost_s) if cost_s <= other_cost_s else (other, other_cost_s)


class RoundRobin:
    """Each in its turn; one with twice the weight has its turn twice as often (earliest deadline first)."""

    __slots__ = ("_draw", "_slow_start_s", "_turns")

    def __init__(self, members: Sequence[Member], draw: Draw, slow_start_s: float) -> None:
        self._draw = draw
        self._slow_start_s = slow_start_s
        start = int(draw() * len(members))  # so that many agents do not begin with the same one
        order = [*members[start:], *members[:start]]
        self._turns = [(1.0 / each.weight, number, each) for number, each in enumerate(order)]
        heapq.heapify(self._turns)

    def choose(self, now: float, key: str) -> Member:
        member = self._next()
        if self._slow_start_s:
            for _ in range(len(self._turns)):
                if not _is_held_back(member, self._slow_start_s, now, self._draw):
                    break
                member = self._next()
        return member

    def _next(self) -> Member:
        due, number, member = self._turns[0]
        heapq.heapreplace(self._turns, (due + 1.0 / member.weight, number, member))
        return member


class ConsistentHash:
    """Whose place in the Maglev table the key falls into, or the next one's that may be chosen."""

    __slots__ = ("_members", "_table")

    def __init__(self, members: Sequence[Member], table: HashTable) -> None:
        self._members = {id(each.state) for each in members}
        self._table = table

    def choose(self, now: float, key: str) -> Member:
        everyone = self._table.everyone
        places = self._table.maglev.from_key(key)
        return next(member for index in places if id((member := everyone[index]).state) in self._members)
