"""Notice that a zone, or a node, that did not answer is back, and let all of it in again quickly.

Sans-I/O: callers pass ``now`` (monotonic seconds).  An endpoint whose connects
were not answered costs its clients seconds, and is avoided (latency.py) or
ejected (outlier.py) for a minute and more.  For one endpoint that is right.  When
most of a place was lost at once, the place was to blame, and one endpoint there
that answers says something about all others.  So while most of a place is lost,

    lost --one connection in so many tries one endpoint--> it answers --> returning
                                                           it does not --> lost

    returning: the others are tried, two at a time, and twice as many after each
               that answers (as TCP's slow start); one that does not answer ends it

An endpoint that is ejected is tried only when its place is returning: that is
the evidence which ends its time early.  What is tried is a connection of a client
that can still go elsewhere, so trying costs at most one connection in 256 the
time of one connect.  A place that is lost again within a minute after it came back
is left alone for longer each time.

A place is a node or a zone, with at least two endpoints of the service.
"""

import math
from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Final

from node_agent.balance.endpoints import EndpointState
from node_agent.balance.outlier import Why
from node_agent.balance.tiers import Member
from node_agent.model import Endpoint

_ONE_IN: Final = 256  # connections to the service; as for those that are silent (silence.py)
_TRY_EVERY_S: Final = 1.0
_LONGEST_S: Final = 64.0  # about what an estimate takes to decay by itself
_RELAPSE_COSTS: Final = 16.0
_MOST_AT_ONCE: Final = 64
_OF_THE_PLACE: Final = (None, Why.CONNECT_FAILURES)  # what a place can be to blame for
_FEWEST: Final = 2  # lost endpoints, to blame the place
_SOON_S: Final = 60.0

PlaceName = tuple[str, ...]


def places_of(endpoint: Endpoint) -> tuple[PlaceName, ...]:
    """Where it is: its node and its zone, as far as they are known."""
    workload = endpoint.agent_of
    if workload is None:
        return ()
    zone = workload.locality.zone
    node = (("node", workload.node),) if workload.node else ()
    return (*node, ("zone", workload.locality.region, zone)) if zone else node


class Place:
    """A node or a zone of which most was lost; ``window`` 1: it still is."""

    __slots__ = ("_is_lost", "_not_before", "_returned_at", "_tried_at", "_wait_s", "under_way", "window")

    def __init__(self) -> None:
        self.window = 1
        self.under_way = 0
        self._is_lost = False
        self._wait_s = 1.0
        self._not_before = self._returned_at = self._tried_at = -math.inf

    def came_back(self, now: float) -> None:
        """One of its endpoints answered."""
        if self.window == 1:
            self._returned_at = now
            self._is_lost = False
        self.window = min(2 * self.window, _MOST_AT_ONCE)

    def failed(self, since: float) -> None:
        """A connect that was begun at ``since`` failed."""
        if self._returned_at <= since:
            self.window = 1

    def is_left_alone(self, now: float) -> bool:
        """Whether it came back of late and is lost again; called only while it is lost."""
        if not self._is_lost:
            self._is_lost = True
            is_relapse = now - self._returned_at < _SOON_S
            self._wait_s = min(self._wait_s * _RELAPSE_COSTS, _LONGEST_S) if is_relapse else 1.0
            self._not_before = now + self._wait_s if is_relapse else -math.inf
        return now < self._not_before

    def is_to_be_tried(self, now: float) -> bool:
        """Whether one connection is to find out if it is back; called only while it is lost."""
        return not self.is_left_alone(now) and not self.under_way and now - self._tried_at >= _TRY_EVERY_S

    def tried(self, now: float) -> None:
        """A connection is sent there to find out."""
        self.under_way += 1
        self._tried_at = now


class Recovery:
    """The endpoints of one pool that did not answer."""

    __slots__ = ("_connections", "_lost", "_lost_in", "_members", "_places", "_returning", "_totals")

    def __init__(self) -> None:
        self._lost: OrderedDict[EndpointState, Member] = OrderedDict()  # who was tried last is last
        self._lost_in: Counter[PlaceName] = Counter()
        self._places: dict[PlaceName, Place] = {}
        self._returning: dict[PlaceName, Place] = {}  # those whose window is more than 1
        self._connections = 0
        self._members: Sequence[Member] = ()
        self._totals: Counter[PlaceName] | None = None  # of the members; not counted while nobody is lost

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to find out."""
        return bool(self._lost)

    def keep(self, members: Sequence[Member]) -> None:
        """These are the endpoints now."""
        if members is self._members:
            return
        self._members, self._totals = members, None
        if self._lost or self._places:
            by_state = {each.state: each for each in members}
            self._lost = OrderedDict((state, by_state[state]) for state in self._lost if state in by_state)
            self._lost_in = Counter(name for each in self._lost.values() for name in places_of(each.endpoint))
            there = {name for each in members for name in places_of(each.endpoint)}
            self._places = {name: place for name, place in self._places.items() if name in there}
            self._find_returning()

    def not_answered(self, member: Member, *, since: float) -> None:
        """A connect that was begun at ``since`` was not answered, or its endpoint is ejected."""
        names = places_of(member.endpoint)
        if member.state not in self._lost:
            self._lost_in.update(names)
        self._lost[member.state] = member
        for name in names:
            if name in self._returning:
                self._returning[name].failed(since)
        self._find_returning()

    def answered(self, state: EndpointState, now: float) -> bool:
        """A connect was answered; whether its place is back, so that what was before says nothing any more."""
        member = self._lost.get(state)
        if member is None:
            return False
        names = places_of(member.endpoint)
        back = [name for name in names if name in self._returning or self._is_first_sign(name, now)]
        for name in back:
            self._places[name].came_back(now)
        if not back and state.outlier.is_ejected(now):
            return False  # it was asked before it was ejected
        del self._lost[state]
        self._lost_in.subtract(names)
        self._find_returning()
        return bool(back)

    def returning(self) -> list[Member]:
        """The lost endpoints of the places that are back."""
        back = self._returning
        return [
            each
            for state, each in self._lost.items()
            if state.outlier.why in _OF_THE_PLACE and any(name in back for name in places_of(each.endpoint))
        ]

    def to_try(self, now: float, *, only_ejected: bool) -> tuple[Member, Place] | None:
        """Who is to be tried with the connection that is about to be made, if anybody; ``tried`` is to be told of it.

        Args:
            only_ejected: the others are used as ever, by this policy.
        """
        for name, place in self._returning.items():
            if place.under_way < place.window and (member := self._next(name, is_ejected=only_ejected or None)):
                return self._try(member, place, now)
        self._connections += 1
        if self._connections < _ONE_IN or only_ejected:
            return None
        self._connections = 0
        for name in self._lost_in:
            if name not in self._returning and self._is_mostly_lost(name):
                place = self._places.setdefault(name, Place())
                if place.is_to_be_tried(now) and (member := self._next(name, is_ejected=False)):
                    return self._try(member, place, now)
        return None

    def tried(self, place: Place, *, failed: bool) -> None:
        """The connect is over: ``failed``, or answered, or given up."""
        place.under_way -= 1
        if failed:
            place.window = 1
            self._find_returning()

    def _try(self, member: Member, place: Place, now: float) -> tuple[Member, Place]:
        place.tried(now)
        self._lost.move_to_end(member.state)
        return member, place

    def _next(self, name: PlaceName, *, is_ejected: bool | None) -> Member | None:
        """Who of a place was not tried for longest; None: ejected or not."""
        for state, member in self._lost.items():
            is_free = not state.connecting and not state.is_unhealthy and state.outlier.why in _OF_THE_PLACE
            may_be = is_free and name in places_of(member.endpoint)
            if may_be and (is_ejected is None or (state.outlier.ejected_until is not None) is is_ejected):
                return member
        return None

    def _is_first_sign(self, name: PlaceName, now: float) -> bool:
        return self._is_mostly_lost(name) and not self._places.setdefault(name, Place()).is_left_alone(now)

    def _find_returning(self) -> None:
        for name, place in self._places.items():
            if place.window > 1 and not self._lost_in[name]:
                place.window = 1
        self._returning = {name: place for name, place in self._places.items() if place.window > 1}

    def _is_mostly_lost(self, name: PlaceName) -> bool:
        if self._totals is None:
            self._totals = Counter(name for each in self._members for name in places_of(each.endpoint))
        return self._lost_in[name] >= _FEWEST and 2 * self._lost_in[name] >= self._totals[name]
