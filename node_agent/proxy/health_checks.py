"""Active health checks: ask the endpoints that local workloads use, and tell the balancer.

A service is checked while it is in use, that is while a local workload has
connected to it within the last minutes; an idle one costs nothing, and what was
found of it is forgotten.  Each agent checks for itself, because each node has
its own way to an endpoint: one whose link is cut is unhealthy from here and
healthy from there.

    enrolled       through a tunnel of a workload that uses the service: an OPEN with ``check``, which
                   the endpoint's agent judges like any other and answers without making a connection of it
    not enrolled   from the namespace of that workload, directly

Of an agent's worker processes one checks an endpoint, and the others hear of it (balance/health_shares.py).

What says nothing about the endpoint (no certificate of ours, one of ours revoked, a
policy that denies this workload, a wrong certificate of the endpoint's agent) changes
nothing: wrong certificates have to be seen, not avoided.  Of workloads that use the
service those are asked for that a policy does not deny.
"""

import logging
import math
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import trio

from ca.manifests import Traffic
from ca.manifests.traffic import HealthCheck
from ca.spiffe import SpiffeId
from node_agent.balance import Balancer
from node_agent.balance.health import HealthChecks, Target
from node_agent.balance.health_shares import ELSEWHERE, HealthShares
from node_agent.balance.limits import Ledger
from node_agent.balance.tiers import weight_of
from node_agent.config import OUTBOUND_PORT
from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.frames import Check, Open
from node_agent.identity import Identities
from node_agent.model import Endpoint, OriginalDestination, PeerAddress, ServicePort
from node_agent.proxy.egress import outside_of, tunnel_ip
from node_agent.proxy.health_probe import probe
from node_agent.proxy.pod import Pod
from node_agent.proxy.routes import Router
from node_agent.proxy.trust_gate import TrustGate
from node_agent.registry import Registry
from node_agent.telemetry.metrics import Metrics
from node_agent.tunnel import Dialler, TunnelClient, TunnelKey

_log: Final = logging.getLogger("ringfence.health")

_IN_USE_S: Final = 300.0
_LOOK_S: Final = 0.5  # how soon a changed policy, or an endpoint that is new, is noticed
_AT_A_TIME: Final = 64
_MOST_ASKERS: Final = 3  # identities for which one check may be made

_SUCCESS: Final = "success"
_FAILURE: Final = "failure"
_NO_RESULT: Final = "no_result"

_Use = tuple[ServicePort, int]  # and the IP version


@dataclass(slots=True)
class _Users:
    """The local workloads that use a service, the latest last; and what was found when it was looked up."""

    pods: dict[Pod, float] = field(default_factory=dict)
    candidates: tuple[Endpoint, ...] = ()
    traffic: Traffic | None = None


class _Place(NamedTuple):
    """Where a target is, and for whose connections."""

    endpoint: Endpoint
    users: _Users
    service: ServicePort


class HealthChecker:
    """Checks what was ``used``, as long as ``run`` runs."""

    def __init__(
        self,
        *,
        registry: Registry,
        router: Router,
        balancer: Balancer,
        identities: Identities,
        tunnels: TunnelClient,
        gate: TrustGate,
        drawn: Callable[[], float],
        metrics: Metrics,
        failing: frozenset[CloseReason],
        ledger: Ledger | None,
    ) -> None:
        """``drawn`` returns a random number of [0, 1); ``failing`` are the reasons that speak against an endpoint.

        ``ledger`` is what this process shares with others that carry the agent's connections, if there are any.
        """
        self._registry = registry
        self._router = router
        self._balancer = balancer
        self._identities = identities
        self._tunnels = tunnels
        self._gate = gate
        self._failing = failing
        self._shares = HealthShares(ledger) if ledger is not None else None
        self._elsewhere: set[Target] = set()  # endpoints that another process holds for unhealthy
        self._checks = HealthChecks(drawn)
        self._users: dict[_Use, _Users] = {}
        self._places: dict[Target, _Place] = {}
        self._running = 0
        self._look_at = math.inf
        self._woken = trio.Event()
        self._results: dict[tuple[str, ...], int] = {(result,): 0 for result in (_SUCCESS, _FAILURE, _NO_RESULT)}
        metrics.counter(
            "ringfence_health_checks_total",
            "Active health checks, by result.",
            lambda: self._results,
            labels=("result",),
        )

    def used(self, pod: Pod, service: ServicePort, ip_version: int) -> None:
        """A connection of ``pod`` goes to a service whose policy wants checks."""
        users = self._users.get((service, ip_version))
        if users is None:
            users = self._users[service, ip_version] = _Users()
            self._look_at = -math.inf
            self._woken.set()
        users.pods.pop(pod, None)
        users.pods[pod] = now = trio.current_time()
        if self._look_at == -math.inf and self._shares is not None:
            self._look_up(now)  # what others know of its endpoints, before one is chosen

    async def run(self) -> None:
        """Check until cancelled; sleeps for as long as nothing is in use."""
        async with trio.open_nursery() as checks:
            while True:
                now = trio.current_time()
                self._woken = trio.Event()
                if now >= self._look_at:
                    self._look_up(now)
                    self._look_at = now + _LOOK_S if self._users else math.inf
                for target in self._checks.due(now, _AT_A_TIME - self._running):
                    self._running += 1
                    checks.start_soon(self._check, target)
                wake_at = self._look_at
                if self._running < _AT_A_TIME:
                    wake_at = min(wake_at, self._checks.next_at())
                with trio.CancelScope(deadline=wake_at):
                    await self._woken.wait()

    # -- what is to be checked ------------------------------------------------------

    def _look_up(self, now: float) -> None:
        """Bring the targets up to date with who uses what, the registry and the policies."""
        is_changed = False
        for use, users in list(self._users.items()):
            while users.pods and _is_over(*next(iter(users.pods.items())), now):
                del users.pods[next(iter(users.pods))]
            traffic = self._registry.traffic(use[0])
            candidates = self._registry.endpoints(*use)
            if not users.pods or traffic.health_check is None:
                del self._users[use]
                is_changed = True
            elif traffic is not users.traffic or candidates is not users.candidates:
                users.traffic, users.candidates = traffic, candidates
                is_changed = True
        if is_changed:
            self._retarget(now)

    def _retarget(self, now: float) -> None:
        before, self._places = self._places, {}
        for (service, _), users in self._users.items():
            traffic = users.traffic
            if traffic is None or traffic.health_check is None:
                continue
            for endpoint in users.candidates:
                if endpoint.ready and weight_of(endpoint, traffic) > 0:
                    self._places[_target(endpoint, traffic.health_check)] = _Place(endpoint, users, service)
        for target in self._checks.watch(self._places, now):
            self._tell(target, before[target], now)
        if self._shares is not None:
            self._share_anew(self._shares, before, now)

    def _share_anew(self, shares: HealthShares, before: dict[Target, _Place], now: float) -> None:
        for target in before.keys() - self._places.keys():
            shares.drop(target)
            if target in self._elsewhere:
                self._elsewhere.discard(target)
                self._tell(target, before[target], now)
        for target in self._places.keys() - before.keys():
            self._ask_others(target, now)

    def _ask_others(self, target: Target, now: float) -> None:
        """Take over what another process holds of an endpoint that it checks."""
        assert self._shares is not None
        is_unhealthy = self._shares.is_unhealthy_elsewhere(target)
        if is_unhealthy is (target in self._elsewhere):
            return
        (self._elsewhere.add if is_unhealthy else self._elsewhere.discard)(target)
        self._tell(target, self._places[target], now)

    # -- a check ----------------------------------------------------------------------

    async def _check(self, target: Target) -> None:
        reason: CloseReason | None = None
        try:
            if self._shares is not None and not self._shares.take(target, time.monotonic()):
                self._leave_to_others(target)
                return
            place = self._places.get(target)
            if place is not None:
                for pod in _askers(place.users):
                    reason = await self._ask(pod, place, target.check)
                    if reason is not CloseReason.POLICY_DENIED:
                        break
        finally:
            self._running -= 1
            self._woken.set()
        failure = "" if reason is CloseReason.OK else f"health check: {reason}" if reason in self._failing else None
        result = _NO_RESULT if failure is None else _FAILURE if failure else _SUCCESS
        self._results[result,] += 1
        now = trio.current_time()
        if self._checks.ended(target, failure, now) and (place := self._places.get(target)) is not None:
            self._tell(target, place, now)
            if why := self._checks.why(target):
                _log.warning("endpoint %s of %s is unhealthy: %s", place.endpoint.address, place.service, why)
            else:
                _log.info("endpoint %s of %s is healthy again", place.endpoint.address, place.service)

    def _leave_to_others(self, target: Target) -> None:
        """Another process checks it: what it has found counts, and not what we had."""
        now = trio.current_time()
        self._checks.ended(target, None, now)
        if (place := self._places.get(target)) is not None:
            if self._checks.forget(target):
                self._tell(target, place, now)
            self._ask_others(target, now)

    def _tell(self, target: Target, place: _Place, now: float) -> None:
        """Tell the balancer, and the other processes, what is known of an endpoint."""
        why = self._checks.why(target)
        if self._shares is not None:
            self._shares.publish(target, bool(why), time.monotonic())
            if target in self._elsewhere and target in self._places:
                why = why or ELSEWHERE
        self._balancer.set_unhealthy(place.endpoint, bool(why), now, why=why)

    async def _ask(self, pod: Pod, place: _Place, check: HealthCheck) -> CloseReason | None:
        """Returns what comes of it, OK or not, None if nobody can tell."""
        reason: CloseReason | None = None
        # The application has the timeout to answer, and the way to it as long again.
        with trio.move_on_after(check.timeout_s * 2) as too_late:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_end_with_pod, pod, nursery.cancel_scope)
                try:
                    reason = await self._reason(pod, place.service, place.endpoint, check)
                except ConnectionFailure as failure:
                    reason = failure.reason
                except OSError as error:
                    _log.debug("check of %s: %s", place.endpoint.address, error)
                nursery.cancel_scope.cancel()
        if _is_gone(pod):
            self._tunnels.forget(pod.workload.uid)  # one that came back meanwhile would keep the pod's namespace
            return None
        if too_late.cancelled_caught:
            reason = CloseReason.VERDICT_TIMEOUT
        return reason

    async def _reason(self, pod: Pod, service: ServicePort, endpoint: Endpoint, check: HealthCheck) -> CloseReason:
        """What comes of a check: OK, or why not.  Raises ConnectionFailure for the latter, too, and OSError."""
        ip, port = endpoint.address.ip, check.port or endpoint.address.port
        asked = Check(tls=check.tls, timeout_s=check.timeout_s)
        workload = endpoint.agent_of
        if endpoint.workload is None:
            self._router.require_outside(endpoint.address)
        if workload is None or not workload.enrolled:
            self._gate.admit_check_of(pod.workload.identity)
            await probe(pod.network.upstream_socket(ip), ip, port, asked)
            return CloseReason.OK
        self._gate.admit_check_of(pod.workload.identity, workload.identity)
        credentials = self._identities.current(pod.workload.identity)
        own_ip = next((each for each in pod.workload.addresses if (":" in each) is (":" in ip)), None)
        if credentials is None or own_ip is None:
            raise ConnectionFailure(CloseReason.IDENTITY_UNAVAILABLE)
        verdict = await self._tunnels.check(
            TunnelKey(pod.workload.uid, pod.workload.identity, tunnel_ip(endpoint), workload.identity),
            Open(
                destination=OriginalDestination(ip, port),
                source=PeerAddress(own_ip, OUTBOUND_PORT),
                workload=pod.workload.name,
                check=asked,
                outside=outside_of(service, endpoint),
            ),
            Dialler(
                make_socket=lambda to: _socket(pod, to),
                context=credentials.client_context,
                not_after=credentials.not_after,
                serial=credentials.serial,
                connect_timeout_s=check.timeout_s,
                handshake_timeout_s=check.timeout_s,
            ),
        )
        return verdict.reason


def _target(endpoint: Endpoint, check: HealthCheck) -> Target:
    return Target(*endpoint.key, check)


def _askers(users: _Users) -> list[Pod]:
    """For whom to ask: who used it last, and, should that be denied, workloads with other identities."""
    by_identity: dict[SpiffeId, Pod] = {}
    for pod in reversed(users.pods):
        if not _is_gone(pod):
            by_identity.setdefault(pod.workload.identity, pod)
            if len(by_identity) == _MOST_ASKERS:
                break
    return list(by_identity.values())


def _is_over(pod: Pod, used_at: float, now: float) -> bool:
    return _is_gone(pod) or now - used_at >= _IN_USE_S


def _is_gone(pod: Pod) -> bool:
    return pod.gone.is_set() or pod.closed.is_set()


def _socket(pod: Pod, ip: str) -> socket.socket:
    """Dialled later than it was asked for: the namespace may have been given back meanwhile."""
    if _is_gone(pod):
        raise ConnectionFailure(CloseReason.WORKLOAD_REMOVED, f"{pod.workload.name} is gone")
    return pod.network.upstream_socket(ip)


async def _end_with_pod(pod: Pod, scope: trio.CancelScope) -> None:
    await pod.gone.wait()
    scope.cancel()
