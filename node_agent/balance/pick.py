"""One connection's endpoint, and what becomes of it.

A pick ends exactly once:

    picked --connected--> counted --release--> ended
    picked --failed-----> ended            picked --release--> ended (given up)
"""

from typing import TYPE_CHECKING, Final

from ca.manifests.traffic import LoadBalancing
from node_agent.balance.latency import PeakEwma
from node_agent.balance.silence import Answer, Silence, Waiting
from node_agent.balance.tiers import Member, is_nearest

if TYPE_CHECKING:
    from node_agent.balance.balancer import Balancer
    from node_agent.balance.pools import Pool
    from node_agent.balance.recovery import Place

# A refused connect is over in no time: it must not look like a fast endpoint.
# The default connect timeout of most clients' first retry (Linux's initial RTO).
_REFUSAL_LATENCY_S: Final = 1.0


class Pick:
    """One connection's endpoint.  Its methods may be called in any order; only the first end counts."""

    __slots__ = (
        "_balancer",
        "_ended",
        "_is_connecting",
        "_member",
        "_picked_at",
        "_pool",
        "_probe",
        "_state",
        "_trial",
        "_waiting",
        "endpoint",
    )

    def __init__(
        self, balancer: "Balancer", pool: "Pool", member: Member, now: float, *, trial: "Place | None" = None
    ) -> None:
        self.endpoint = member.endpoint
        self._member = member
        self._state = member.state
        self._trial = trial
        self._balancer = balancer
        self._pool = pool
        self._picked_at = now
        self._ended = False
        self._is_connecting = True
        self._waiting: tuple[Silence, Waiting] | None = None
        self._state.open_connections += 1
        self._state.waits(now)
        self._probe = self._state.outlier.picked(now)
        if self._state.silence is not None:
            self._state.silence.picked()

    @property
    def is_probe(self) -> bool:
        """Whether it finds out if an ejected endpoint is back."""
        return self._probe != 0

    def connected(self, now: float) -> None:
        """The destination accepted the connection; the time since the pick is the sample."""
        if not self._ended:
            state, sample_s = self._state, now - self._picked_at
            self._answered(now)
            is_back = self._pool.recovery.is_needed and self._balancer.came_back(self._pool, state, now)
            if is_back and sample_s >= _REFUSAL_LATENCY_S:
                state.latency = None  # it waited for its zone to come back: that is no latency of the endpoint
            elif state.latency is None or is_back:
                state.latency = PeakEwma(sample_s, now)
            else:
                state.latency.observe(sample_s, now)
            if is_back:
                state.silence = None
                state.outlier.may_be_probed(now)
            if state.outlier.connected(now) or is_back:
                state.since = now
                self._balancer.health_changed(self.endpoint.address)
            self._probe = 0
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
            self._answered(now, failed=True)
            if waited_s >= _REFUSAL_LATENCY_S or state.outlier.is_ejected(now):
                traffic, near = self._pool.traffic, self._pool.near
                if is_nearest(self.endpoint, traffic.locality, near):
                    self._pool.recovery.not_answered(self._member, since=self._picked_at)
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
            if self._probe:
                self._state.outlier.given_up(self._probe)
                self._balancer.health_changed(self.endpoint.address)

    def _answered(self, now: float, *, failed: bool = False) -> None:
        if self._is_connecting:
            self._is_connecting = False
            self._state.answered(now)
            if self._trial is not None:
                self._pool.recovery.tried(self._trial, failed=failed)
