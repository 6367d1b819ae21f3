"""What is known of each endpoint: how it did, how it is, and how many connections it has.

It is small, belongs to one incarnation of a workload (a pod that takes over an
address starts afresh), and is forgotten when it has had no connection and no
pick for a while: each pick sweeps a little.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from node_agent.balance.latency import PeakEwma
from node_agent.balance.outlier import Outlier
from node_agent.balance.silence import Silence
from node_agent.model import Endpoint, EndpointKey

_FORGET_AFTER_S: Final = 60.0  # six decay times: what is left of an estimate is 0.2 %
_LONG_S: Final = 0.01  # of an endpoint that nothing else is known of
_SWEPT_AT_ONCE: Final = 2
_SWEPT_SHARE: Final = 256  # and of a large table one in so many: a service may bring many new endpoints to each pick


class EndpointState:
    """One endpoint of one incarnation of a workload; ``since`` is when it came or became ready (slow start).

    ``connecting`` of its connections have no verdict yet; if there are any, ``waiting_since`` is
    when the last verdict came, or the first of them was sent there.
    """

    __slots__ = (
        "connecting",
        "is_unhealthy",
        "latency",
        "open_connections",
        "outlier",
        "silence",
        "since",
        "used_at",
        "waiting_since",
        "why_unhealthy",
    )

    def __init__(self, since: float) -> None:
        self.open_connections = 0
        self.connecting = 0
        self.waiting_since = 0.0
        self.latency: PeakEwma | None = None
        self.outlier = Outlier()
        self.silence: Silence | None = None
        self.is_unhealthy = False
        self.why_unhealthy = ""
        self.since = since
        self.used_at = since

    def waits(self, now: float) -> None:
        """A connection is sent there."""
        if not self.connecting:
            self.waiting_since = now
        self.connecting += 1

    def answered(self, now: float) -> None:
        """One of those that were sent there has its verdict, or was given up."""
        self.connecting -= 1
        self.waiting_since = now

    def connect_latency_s(self, now: float) -> float | None:
        """The estimate, or what is being waited already if that is more; None if nothing is known.

        An endpoint that is gone without a word would else look as good as ever
        until the first connect times out.
        """
        known_s = None if self.latency is None else self.latency.at(now)
        if self.connecting:
            waited_s = now - self.waiting_since
            if waited_s > (_LONG_S if known_s is None else known_s):
                return waited_s
        return known_s

    def expected_s(self, now: float) -> float | None:
        """What a client has to expect: the connect latency, or for how long the endpoint has not answered."""
        latency_s = self.connect_latency_s(now)
        if self.silence is None or not (silent_s := self.silence.silent_s(now)):
            return latency_s
        return 0.0 if self.silence.is_to_be_tried else max(silent_s, latency_s or 0.0)

    def may_serve(self, now: float) -> bool:
        """Whether a connection may be sent there."""
        return not self.is_unhealthy and self.outlier.may_serve(now)


class EndpointStates:
    """All endpoints that are in use or were lately."""

    def __init__(self) -> None:
        self._states: OrderedDict[EndpointKey, EndpointState] = OrderedDict()  # least recently picked first

    def get(self, endpoint: Endpoint) -> EndpointState | None:
        return self._states.get(endpoint.key)

    def items(self) -> Iterable[tuple[EndpointKey, EndpointState]]:
        """Everything, by address and uid of the workload (or empty); not to be held."""
        return self._states.items()

    def use(self, endpoint: Endpoint, now: float, *, since: float | None = None) -> EndpointState:
        """The state of an endpoint that is looked at now; made if there is none, as of one that came at ``since``."""
        key = endpoint.key
        state = self._states.get(key)
        if state is None:
            state = self._states[key] = EndpointState(now if since is None else since)
        else:
            self._states.move_to_end(key)
        state.used_at = now
        return state

    def used(self, endpoint: Endpoint, state: EndpointState, now: float) -> None:
        """The endpoint was picked by somebody who held on to its state."""
        key = endpoint.key
        self._states[key] = state
        self._states.move_to_end(key)
        state.used_at = now

    def sweep(self, now: float) -> None:
        """Forget what has been idle for long, a little at each call.

        An entry in use that has come to the front goes to the back, so that it
        does not keep the ones behind it.
        """
        for _ in range(min(_SWEPT_AT_ONCE + len(self._states) // _SWEPT_SHARE, len(self._states))):
            key, state = next(iter(self._states.items()))
            if now - state.used_at < _FORGET_AFTER_S:
                return
            if state.open_connections or state.is_unhealthy or state.outlier.is_ejected(now):
                state.used_at = now
                self._states.move_to_end(key)
            else:
                del self._states[key]
