"""Choose an endpoint: round-robin, or the better of two by latency and open connections.

Sans-I/O: no clock and no task; callers pass ``now`` (monotonic seconds), and
the source of randomness once.

*least-latency* draws two different endpoints and takes the one that costs
less: estimated connect latency times (open connections + 1).  Drawing two and
not looking at all avoids both the herd (everybody to the best one) and the cost
of a search.  Of an endpoint that was never connected to, nothing is known but
its open connections: it counts as being as fast as the other one, so it is
neither starved nor flooded.

*round-robin* takes the ready endpoints in their order, per service port.

Endpoints that are not ready are never picked, as in Kubernetes.

What is known of an endpoint is small, belongs to one incarnation of a workload
(a pod that takes over an address starts afresh, and so does the latency of one
that was not ready and is again), and is forgotten when it has had no connection
and no pick for a while: each pick sweeps a little.

A pick ends exactly once:

    picked --connected--> counted --release--> ended
    picked --failed-----> ended            picked --release--> ended (given up)
"""

from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from node_agent.balance.latency import PeakEwma
from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.model import Endpoint, EndpointAddress, ServicePort

if TYPE_CHECKING:
    from random import Random

ROUND_ROBIN: Final = "round-robin"
LEAST_LATENCY: Final = "least-latency"
POLICIES: Final = (LEAST_LATENCY, ROUND_ROBIN)

# A refused connect is over in no time: it must not look like a fast endpoint.
# The default connect timeout of most clients' first retry (Linux's initial RTO).
_REFUSAL_LATENCY_S: Final = 1.0
_FORGET_AFTER_S: Final = 60.0  # six decay times: what is left of an estimate is 0.2 %
_SWEPT_PER_PICK: Final = 2  # at most one entry is added per pick, so the table shrinks

_Key = tuple[EndpointAddress, str]


class NoEndpoints(ConnectionFailure):
    """Nobody serves this service port now."""

    def __init__(self, detail: str) -> None:
        super().__init__(CloseReason.NO_SERVICE_ENDPOINTS, detail)


class EndpointLoad(NamedTuple):
    """What the balancer knows of an endpoint; ``latency_s`` is None before the first connect."""

    open_connections: int
    latency_s: float | None


@dataclass(slots=True, eq=False)
class _Load:
    """One endpoint of one incarnation of a workload."""

    open_connections: int = 0
    latency: PeakEwma | None = None
    used_at: float = 0.0


@dataclass(slots=True, eq=False)
class _Rotation:
    """The ready endpoints of one tuple from the registry, and where round-robin is in them."""

    candidates: Sequence[Endpoint]
    ready: Sequence[Endpoint]
    position: int = 0
    used_at: float = 0.0


class Pick:
    """One connection's endpoint.  Its methods may be called in any order; only the first end counts."""

    __slots__ = ("_ended", "_load", "_picked_at", "endpoint")

    def __init__(self, endpoint: Endpoint, load: _Load, now: float) -> None:
        self.endpoint = endpoint
        self._load = load
        self._picked_at = now
        self._ended = False
        load.open_connections += 1

    def connected(self, now: float) -> None:
        """The destination accepted the connection; the time since the pick is the sample."""
        if not self._ended:
            sample_s = now - self._picked_at
            if self._load.latency is None:
                self._load.latency = PeakEwma(sample_s, now)
            else:
                self._load.latency.observe(sample_s, now)

    def failed(self, now: float) -> None:
        """The destination could not be connected to; ends the pick."""
        if not self._ended:
            waited_s = now - self._picked_at
            if self._load.latency is None:
                self._load.latency = PeakEwma(0.0, now)
            if waited_s < _REFUSAL_LATENCY_S:
                self._load.latency.penalize(_REFUSAL_LATENCY_S, now)
            else:
                self._load.latency.observe(waited_s, now)
            self.release(now)

    def release(self, now: float) -> None:
        """The connection is over, however far it got; harmless when already ended."""
        if not self._ended:
            self._ended = True
            self._load.open_connections -= 1
            self._load.used_at = now


class Balancer:
    """Picks endpoints and remembers how they did.

    Args:
        rng: where the two draws come from; a seeded one makes picks repeatable.
        policy: for every service; by default each service's own ``load_balancing``.
    """

    def __init__(self, *, rng: "Random", policy: str | None = None) -> None:
        if policy is not None and policy not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}, not {policy!r}")
        self._random = rng.random
        self._policy = policy
        self._loads: OrderedDict[_Key, _Load] = OrderedDict()  # least recently picked first
        self._rotations: OrderedDict[tuple[ServicePort, int], _Rotation] = OrderedDict()

    def pick(
        self,
        service: ServicePort,
        candidates: Sequence[Endpoint],
        now: float,
        *,
        exclude: Collection[EndpointAddress] = (),
    ) -> Pick:
        """Choose one of the candidates and count a connection to it.

        Constant time when ``candidates`` is the registry's own tuple (it is
        recognised by identity) and ``exclude`` is empty.

        Args:
            candidates: of one IP family; those that are not ready are passed over.
            exclude: endpoints that this connection has tried already.

        Raises:
            NoEndpoints: none is ready, or none is left.
        """
        rotation = self._rotation(service, candidates, now)
        ready = rotation.ready
        if exclude:
            ready = [each for each in ready if each.address not in exclude]
        if not ready:
            raise NoEndpoints(_why_none(service, candidates, rotation.ready))
        if (self._policy or service.load_balancing) == ROUND_ROBIN:
            endpoint = ready[rotation.position % len(ready)]
            rotation.position += 1
        else:
            endpoint = self._better_of_two(ready, now)
        pick = Pick(endpoint, self._load_for(endpoint, now), now)
        self._sweep(now)
        return pick

    def load_of(self, endpoint: Endpoint, now: float) -> EndpointLoad:
        """What operators are shown."""
        load = self._loads.get(_key(endpoint))
        return EndpointLoad(0, None) if load is None else _shown(load, now)

    def loads(self, now: float) -> Iterator[tuple[EndpointAddress, str, EndpointLoad]]:
        """What is known of all endpoints: address, uid of the workload (or empty), load.  Not to be held."""
        for (address, uid), load in self._loads.items():
            yield address, uid, _shown(load, now)

    def _rotation(self, service: ServicePort, candidates: Sequence[Endpoint], now: float) -> _Rotation:
        family = 6 if candidates and ":" in candidates[0].address.ip else 4
        key = (service, family)
        rotation = self._rotations.get(key)
        if rotation is None or rotation.candidates is not candidates:
            ready = candidates if all(each.ready for each in candidates) else [e for e in candidates if e.ready]
            if rotation is not None and rotation.ready is not rotation.candidates:
                self._forget_latency(rotation.candidates, ready)
            position = rotation.position if rotation is not None else int(self._random() * len(ready))
            rotation = self._rotations[key] = _Rotation(candidates, ready, position)
        rotation.used_at = now
        self._rotations.move_to_end(key)
        return rotation

    def _forget_latency(self, before: Sequence[Endpoint], ready: Sequence[Endpoint]) -> None:
        """An endpoint that has become ready again is not judged by how it was when it failed."""
        were_not = {_key(each) for each in before if not each.ready}
        for each in ready:
            key = _key(each)
            if key in were_not and (load := self._loads.get(key)) is not None:
                load.latency = None

    def _better_of_two(self, ready: Sequence[Endpoint], now: float) -> Endpoint:
        count = len(ready)
        if count == 1:
            return ready[0]
        first = int(self._random() * count)
        second = int(self._random() * (count - 1))
        second += second >= first
        return self._better(ready[first], ready[second], now)

    def _better(self, one: Endpoint, other: Endpoint, now: float) -> Endpoint:
        load, other_load = self._loads.get(_key(one)), self._loads.get(_key(other))
        cost = load.open_connections + 1.0 if load else 1.0
        other_cost = other_load.open_connections + 1.0 if other_load else 1.0
        if load and other_load and load.latency and other_load.latency:
            cost *= load.latency.at(now)
            other_cost *= other_load.latency.at(now)
        return one if cost <= other_cost else other

    def _load_for(self, endpoint: Endpoint, now: float) -> _Load:
        key = _key(endpoint)
        load = self._loads.get(key)
        if load is None:
            load = self._loads[key] = _Load()
        else:
            self._loads.move_to_end(key)
        load.used_at = now
        return load

    def _sweep(self, now: float) -> None:
        """Forget what has been idle for long, a little at each pick.

        An entry in use that has come to the front goes to the back, so that it
        does not keep the ones behind it.
        """
        for _ in range(_SWEPT_PER_PICK):
            key, load = next(iter(self._loads.items()))
            if now - load.used_at < _FORGET_AFTER_S:
                break
            if load.open_connections:
                load.used_at = now
                self._loads.move_to_end(key)
            else:
                del self._loads[key]
        service, rotation = next(iter(self._rotations.items()))
        if now - rotation.used_at >= _FORGET_AFTER_S:
            del self._rotations[service]


def _shown(load: _Load, now: float) -> EndpointLoad:
    return EndpointLoad(load.open_connections, load.latency.at(now) if load.latency else None)


def _key(endpoint: Endpoint) -> _Key:
    return (endpoint.address, endpoint.workload.uid if endpoint.workload is not None else "")


def _why_none(service: ServicePort, candidates: Sequence[Endpoint], ready: Sequence[Endpoint]) -> str:
    if not candidates:
        return f"{service} has no endpoints"
    if not ready:
        return f"none of the {len(candidates)} endpoints of {service} is ready"
    return f"each of the {len(ready)} ready endpoints of {service} was tried"
