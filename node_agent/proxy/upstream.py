"""Get through to a place that serves a connection: choose, connect or open a tunnel, try another one.

A failed connect goes to another endpoint while no byte of the application was
delivered, within the attempts and the retry budget of the service.
"""

import socket
from dataclasses import dataclass
from typing import Final

import trio

from ca.manifests import Traffic
from ca.manifests.traffic import Timeouts
from node_agent.balance import Balancer, Client, Near, NoEndpoints, Pick
from node_agent.errors import CloseReason, ConnectionFailure, HandshakeBrokenOff, PolicyDenied
from node_agent.frames import Open
from node_agent.identity import Identities
from node_agent.model import Endpoint, EndpointKey, OriginalDestination, PeerAddress, ServicePort
from node_agent.proxy.egress import outside_of, tunnel_ip
from node_agent.proxy.foresight import Foresight
from node_agent.proxy.health_checks import HealthChecker
from node_agent.proxy.pod import Pod
from node_agent.proxy.routes import Route, Router
from node_agent.proxy.trust_gate import TrustGate
from node_agent.relay import reset_on_close
from node_agent.telemetry.connection_record import ConnectionRecord
from node_agent.tunnel import Dialler, SharedConnection, Tunnel, TunnelClient, TunnelKey, connect

ANOTHER_MAY_WORK: Final = frozenset(
    {
        CloseReason.CONNECT_REFUSED,
        CloseReason.CONNECT_TIMEOUT,
        CloseReason.CONNECT_UNREACHABLE,
        CloseReason.CONNECT_FAILED,
        CloseReason.PEER_UNAVAILABLE,
        CloseReason.HANDSHAKE_TIMEOUT,
        CloseReason.VERDICT_TIMEOUT,
        CloseReason.TUNNEL_LOST,
        CloseReason.DRAINED,
        CloseReason.WORKLOAD_REMOVED,
        CloseReason.OVERLOADED,
        CloseReason.UNKNOWN_DESTINATION,
    }
)
"""Failures of one endpoint before any application byte was sent.  Wrong certificates are not among
them: an impostor must be seen, not silently avoided."""


def another_may_work(failure: ConnectionFailure) -> bool:
    """Whether it may be worth while to try another endpoint.

    An agent that ends resets who was about to shake hands with it: HandshakeBrokenOff.
    """
    return failure.reason in ANOTHER_MAY_WORK or isinstance(failure, HandshakeBrokenOff)


_NO_WAY_TO_THE_PEER: Final = frozenset(
    {
        CloseReason.PEER_UNAVAILABLE,
        CloseReason.HANDSHAKE_TIMEOUT,
        CloseReason.VERDICT_TIMEOUT,
        CloseReason.TUNNEL_LOST,
        CloseReason.DRAINED,
        CloseReason.WORKLOAD_REMOVED,
        CloseReason.OVERLOADED,
    }
)
"""Those that say nothing of the place behind an egress pod, but all of the pod."""


@dataclass(slots=True, kw_only=True)
class Upstream:
    """Where we got through; and the balancer's pick.  The caller owns all.

    It is a plain socket, or a tunnel, or a place in a shared one; both with the
    key, and with how another tunnel is made.
    """

    plain: socket.socket | None = None
    tunnel: Tunnel | None = None
    shared: SharedConnection | None = None
    key: TunnelKey | None = None
    dialler: Dialler | None = None
    pick: Pick | None = None


class Connector:
    """Connects on behalf of local workloads."""

    def __init__(
        self,
        *,
        router: Router,
        balancer: Balancer,
        identities: Identities,
        tunnels: TunnelClient,
        gate: TrustGate,
        foresight: Foresight,
        health: HealthChecker,
        connect_timeout_s: float,
        max_connect_attempts: int,
    ) -> None:
        self._router = router
        self._balancer = balancer
        self._identities = identities
        self._tunnels = tunnels
        self._gate = gate
        self._foresight = foresight
        self._health = health
        self._connect_timeout_s = connect_timeout_s
        self._max_connect_attempts = max_connect_attempts

    async def reach(
        self, pod: Pod, peer: PeerAddress, route: Route, record: ConnectionRecord, *, may_share: bool = True
    ) -> Upstream:
        """Get through to the one candidate, or to one endpoint of the service; raises ConnectionFailure.

        ``may_share``: whether the connection may go where others go, too.
        """
        started = trio.current_time()
        if route.service is None:
            record.attempts = 1
            upstream = await self._connect(
                pod, peer, route.candidates[0], record, route.traffic.timeouts, may_share=may_share
            )
        else:
            upstream = await self._reach_service(pod, peer, route, route.service, record, may_share=may_share)
        record.connect_ms = (trio.current_time() - started) * 1000
        return upstream

    async def _reach_service(
        self,
        pod: Pod,
        peer: PeerAddress,
        route: Route,
        service: ServicePort,
        record: ConnectionRecord,
        *,
        may_share: bool,
    ) -> Upstream:
        """Try endpoint after endpoint while no application byte was sent."""
        traffic = route.traffic
        if traffic.health_check is not None:
            self._health.used(pod, service, 6 if ":" in peer.ip else 4)
        client = Client(Near.of(pod.workload), peer.ip, str(pod.workload.identity))
        tried: set[EndpointKey] = set()
        last: ConnectionFailure | None = None
        while True:
            try:
                pick = self._balancer.pick(
                    service, route.candidates, trio.current_time(), traffic=traffic, client=client, exclude=tried
                )
            except NoEndpoints as none_left:
                raise last or none_left from None
            record.attempts += 1
            try:
                upstream = await self._connect(pod, peer, pick.endpoint, record, traffic.timeouts, may_share=may_share)
            except PolicyDenied:
                pick.release(trio.current_time())  # it says nothing about the endpoint, but about who asks
                raise
            except ConnectionFailure as failure:
                pick.failed(trio.current_time())
                if not another_may_work(failure) or not self._may_retry(service, traffic, record):
                    raise
                last = failure
                tried.add(pick.endpoint.key)
                no_way = failure.reason in _NO_WAY_TO_THE_PEER or isinstance(failure, HandshakeBrokenOff)
                if pick.endpoint.egress is not None and no_way:
                    tried.update(each.key for each in route.candidates if each.egress == pick.endpoint.egress)
            except BaseException:
                pick.release(trio.current_time())
                raise
            else:
                pick.connected(trio.current_time())
                upstream.pick = pick
                return upstream

    def _may_retry(self, service: ServicePort, traffic: Traffic, record: ConnectionRecord) -> bool:
        attempts = traffic.retry.attempts or self._max_connect_attempts
        return record.attempts < attempts and self._balancer.may_retry(service, traffic, trio.current_time())

    async def _connect(
        self,
        pod: Pod,
        peer: PeerAddress,
        endpoint: Endpoint,
        record: ConnectionRecord,
        timeouts: Timeouts,
        *,
        may_share: bool,
    ) -> Upstream:
        workload = endpoint.agent_of
        is_enrolled = workload is not None and workload.enrolled
        record.chose(
            endpoint=endpoint.address,
            destination=workload,
            destination_identity=workload.identity if workload is not None and is_enrolled else None,
            security="mutual_tls" if is_enrolled else "none",
        )
        if endpoint.workload is None:
            self._router.require_outside(endpoint.address)
        if workload is None or not is_enrolled:
            plain = pod.network.upstream_socket(endpoint.address.ip)
            reset_on_close(plain)
            try:
                await connect(
                    plain,
                    endpoint.address.ip,
                    endpoint.address.port,
                    timeout_s=timeouts.connect_s or self._connect_timeout_s,
                )
            except BaseException:
                plain.close()
                raise
            return Upstream(plain=plain)

        self._gate.admit(record, pod.workload.identity, workload.identity)
        self._foresight.spare(record, trio.current_time())
        credentials = await self._identities.wait_for(pod.workload.identity)
        key = TunnelKey(pod.workload.uid, pod.workload.identity, tunnel_ip(endpoint), workload.identity)
        message = Open(
            destination=OriginalDestination(*endpoint.address),
            source=peer,
            workload=pod.workload.name,
            trace_parent=record.trace_parent,
            outside=outside_of(record.service, endpoint),
            connect_timeout_s=timeouts.connect_s or None,
        )
        dialler = Dialler(
            make_socket=pod.network.upstream_socket,
            context=credentials.client_context,
            not_after=credentials.not_after,
            serial=credentials.serial,
            connect_timeout_s=timeouts.connect_s,
            handshake_timeout_s=timeouts.handshake_s,
            reached=record.trace.reached if record.trace is not None else None,
        )
        upstream = Upstream(key=key, dialler=dialler)
        try:
            if may_share:
                upstream.shared = await self._tunnels.open_shared(key, message, dialler)
            if upstream.shared is None:
                upstream.tunnel = await self._tunnels.open(key, message, dialler)
        except PolicyDenied:
            self._foresight.denied(record, trio.current_time())
            raise
        try:
            self._gate.admit_tunnel(record, pod.workload.identity, _proof(upstream))
        except ConnectionFailure:
            if upstream.shared is not None:
                self._tunnels.distrust(key, upstream.shared)  # revoked while it was dialled, or in this moment
            elif upstream.tunnel is not None:
                self._tunnels.discard(upstream.tunnel)
            raise
        return upstream


def _proof(upstream: Upstream) -> Tunnel:
    """The tunnel in whose handshake both ends were proven."""
    tunnel = upstream.tunnel if upstream.shared is None else upstream.shared.tunnel
    assert tunnel is not None
    return tunnel
