"""What a TrafficPolicy restrains: who is let in, how fast the bytes move, and what is broken on purpose.

    admit: limits and rate of connections > the fault that was drawn (wait, refuse) > Passage
    Passage: counts until the connection is over; its meter paces the bytes, or resets after so many

A connection to a service that restrains nothing gets the one passage of all such.
"""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Final

import trio

from ca.manifests.traffic import DEFAULT, Fault
from ca.spiffe import SpiffeId
from node_agent.balance.faults import draw
from node_agent.balance.limits import Admitted, Breach, Breaker, ByteBudget, Ledger
from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.model import ServicePort
from node_agent.proxy.routes import Route
from node_agent.registry import Registry
from node_agent.relay import Meter
from node_agent.telemetry.connection_record import ConnectionRecord
from node_agent.telemetry.metrics import Metrics

_DELAY: Final = "delay"
_REFUSE: Final = "refuse"
_RESET: Final = "reset"

_READS_A_SECOND: Final = 50.0  # of a connection that has all of its rate for itself: evenly, at little cost
_LEAST_READ_BYTES: Final = 2 * 1024
_MOST_READ_BYTES: Final = 256 * 1024
_READ_BEFORE_RESET_BYTES: Final = 16 * 1024


class Passage:
    """Leave to connect: a ``with`` block for as long as the connection is there."""

    __slots__ = ("_admitted", "meter")

    def __init__(self, admitted: Admitted | None = None, meter: Meter | None = None) -> None:
        self._admitted = admitted
        self.meter = meter

    def connected(self) -> None:
        """It is no pending connect any more."""
        if self._admitted is not None:
            self._admitted.connected(time.monotonic())

    def __enter__(self) -> "Passage":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._admitted is not None:
            self._admitted.release(time.monotonic())


_FREE: Final = Passage()


class Admission:
    """Applies limits, rate limits and faults to what local workloads open."""

    def __init__(self, *, registry: Registry, ledger: Ledger, drawn: Callable[[], float], metrics: Metrics) -> None:
        """``drawn`` returns a random number of [0, 1)."""
        self._registry = registry
        self._ledger = ledger
        self._breaker = Breaker(ledger)
        self._drawn = drawn
        self._faults: dict[tuple[str, ...], int] = {(kind,): 0 for kind in (_DELAY, _REFUSE, _RESET)}
        metrics.counter(
            "ringfence_faults_injected_total",
            "Connections that were disturbed because a TrafficPolicy says so.",
            lambda: self._faults,
            labels=("kind",),
        )

    async def admit(self, route: Route, source: SpiffeId, record: ConnectionRecord) -> Passage:
        """Let a connection in, after the delay that it may get; raises ConnectionFailure.

        The caller enters the passage at once.
        """
        traffic = route.traffic
        if traffic is DEFAULT or route.service is None or not traffic.restrains:
            return _FREE
        scope, policy = self._scope(route.service)
        who = str(source)
        admitted = self._breaker.admit(scope, who, traffic.limits, traffic.rate_limit, time.monotonic())
        if isinstance(admitted, Breach):
            raise _refusal(admitted, policy, who)
        try:
            fault = draw(traffic.faults, who, self._drawn()) if traffic.faults else None
            if fault is not None:
                await self._disturb(fault, policy, record)
        except BaseException:
            admitted.release(time.monotonic())
            raise
        budget = None
        if traffic.rate_limit.bytes_per_s is not None:
            budget = ByteBudget(self._ledger, scope, who, traffic.rate_limit)
        reset_after_bytes = None if fault is None else fault.reset_after_bytes
        if budget is None and reset_after_bytes is None:
            return Passage(admitted)

        def on_reset() -> None:
            self._injected(_RESET, f"reset after {reset_after_bytes} bytes", policy, record)
            record.close_because(CloseReason.FAULT_INJECTED, record.fault or "")

        most_bytes = _most_bytes(traffic.rate_limit.bytes_per_s, reset_after_bytes)
        meter = _Toll(budget=budget, reset_after_bytes=reset_after_bytes, on_reset=on_reset, most_bytes=most_bytes)
        return Passage(admitted, meter)

    def _scope(self, service: ServicePort) -> tuple[str, str]:
        """Whom the policy in force is about (all ports of the service share it, unless it names one), and its name."""
        policy = self._registry.traffic_policy(service)
        if policy is None:
            return str(service), "that is gone"
        return str(service if policy.port is not None else service.service), f"{policy.namespace}/{policy.name}"

    async def _disturb(self, fault: Fault, policy: str, record: ConnectionRecord) -> None:
        if fault.delay_s is not None:
            self._injected(_DELAY, f"delay of {fault.delay_s:g} s", policy, record)
            await trio.sleep(fault.delay_s)
        elif fault.refuse:
            self._injected(_REFUSE, "refused", policy, record)
            raise ConnectionFailure(CloseReason.FAULT_INJECTED, record.fault or "")

    def _injected(self, kind: str, what: str, policy: str, record: ConnectionRecord) -> None:
        self._faults[kind,] += 1
        record.fault = f"{what} by TrafficPolicy {policy}"


class _Toll:
    """The ``Meter`` of one connection."""

    __slots__ = ("_budget", "_on_reset", "_reset_after_bytes", "most_bytes")

    def __init__(
        self, *, budget: ByteBudget | None, reset_after_bytes: int | None, on_reset: Callable[[], None], most_bytes: int
    ) -> None:
        self._budget = budget
        self._reset_after_bytes = reset_after_bytes
        self._on_reset = on_reset
        self.most_bytes = most_bytes

    def moved(self, moved_bytes: int) -> float | CloseReason:
        """Pay for the bytes; the time until more may move, or the end."""
        if self._reset_after_bytes is not None:
            self._reset_after_bytes -= moved_bytes
            if self._reset_after_bytes <= 0:
                self._on_reset()
                return CloseReason.FAULT_INJECTED
        return 0.0 if self._budget is None else self._budget.pay(moved_bytes, time.monotonic())


def _most_bytes(bytes_per_s: float | None, reset_after_bytes: int | None) -> int:
    most = _MOST_READ_BYTES
    if bytes_per_s is not None:
        most = max(_LEAST_READ_BYTES, min(most, int(bytes_per_s / _READS_A_SECOND)))
    if reset_after_bytes is not None:
        most = max(1, min(most, reset_after_bytes, _READ_BEFORE_RESET_BYTES))
    return most


def _refusal(breach: Breach, policy: str, source: str) -> ConnectionFailure:
    if breach.limit is None:
        return ConnectionFailure(
            CloseReason.LIMIT_EXCEEDED, f"too many services and sources are counted for TrafficPolicy {policy}"
        )
    text = f"{breach.limit} {breach.value:.12g} of TrafficPolicy {policy}"
    if breach.is_rate:
        return ConnectionFailure(CloseReason.RATE_LIMITED, f"{text} is used up; {source} has to wait")
    return ConnectionFailure(CloseReason.LIMIT_EXCEEDED, f"{text} is reached; {source} is over it")
