"""The story of a connection that a local workload opened.

    accept > where was it going > resolve > choose > tunnel or passthrough > relay > account

Read ``handle`` from top to bottom; each step is one call into one folder.
"""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from node_agent.balance import Balancer, NoEndpoints, Pick
from node_agent.capture import original_destination
from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.frames import Open
from node_agent.identity import Identities
from node_agent.model import Endpoint, EndpointAddress, OriginalDestination, PeerAddress, ServicePort
from node_agent.proxy.live import LiveConnections
from node_agent.proxy.pod import Accepted, Pod
from node_agent.proxy.routes import Route, Router
from node_agent.proxy.trust_gate import TrustGate
from node_agent.relay import Ending, Outcome, Pair, Relay, reset_on_close
from node_agent.telemetry.access_log import AccessLog
from node_agent.telemetry.connection_record import ConnectionRecord
from node_agent.tunnel import Dialler, Tunnel, TunnelClient, TunnelKey, connect

_CLOSE_REASONS: Final = {
    Ending.COMPLETE: CloseReason.OK,
    Ending.PLAIN_RESET: CloseReason.DOWNSTREAM_RESET,
    Ending.PEER_RESET: CloseReason.UPSTREAM_RESET,
    Ending.TUNNEL_LOST: CloseReason.TUNNEL_LOST,
    Ending.PROTOCOL_ERROR: CloseReason.PROTOCOL_ERROR,
    Ending.CUT: CloseReason.INTERNAL_ERROR,  # whoever cut it has written the reason before
}

_ANOTHER_MAY_WORK: Final = frozenset(
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


@dataclass(slots=True, kw_only=True)
class _Target:
    """Where ``Outbound`` got through: a plain socket, or a tunnel with its key; and the balancer's pick."""

    plain: socket.socket | None = None
    tunnel: Tunnel | None = None
    key: TunnelKey | None = None
    pick: Pick | None = None


class Outbound:
    """Serves connections that local workloads open."""

    def __init__(
        self,
        *,
        access_log: AccessLog,
        live: LiveConnections,
        router: Router,
        balancer: Balancer,
        identities: Identities,
        tunnels: TunnelClient,
        relay: Relay,
        gate: TrustGate,
        connect_timeout_s: float,
        max_connect_attempts: int,
    ) -> None:
        self._access_log = access_log
        self._live = live
        self._router = router
        self._balancer = balancer
        self._identities = identities
        self._tunnels = tunnels
        self._relay = relay
        self._gate = gate
        self._connect_timeout_s = connect_timeout_s
        self._max_connect_attempts = max_connect_attempts

    async def handle(self, pod: Pod, connection: socket.socket, peer: PeerAddress) -> None:
        """Serve one connection to its end; its failures end in the access record.  Takes ``connection`` over."""
        accepted = Accepted(connection)
        with (
            self._access_log.connection("outbound") as record,
            self._live.track(record, pod.workload.uid),
            accepted as downstream,
        ):
            record.note(source=pod.workload, source_address=peer, source_identity=pod.workload.identity)
            destination = original_destination(downstream, peer)
            record.note(original_destination=destination)

            self._gate.admit(record, pod.workload.identity)
            route = await self._router.route(destination)
            record.note(service=route.service)

            target = await self._reach(pod, peer, route, record)
            try:
                record.opened()
                outcome = await self._carry(pod, accepted.take(), target, record)
            finally:
                if target.pick is not None:
                    target.pick.release(trio.current_time())

            if outcome.ending is not Ending.COMPLETE:
                record.close_because(outcome.reason or _CLOSE_REASONS[outcome.ending])

    async def _reach(self, pod: Pod, peer: PeerAddress, route: Route, record: ConnectionRecord) -> _Target:
        """Get through to the one candidate, or to one endpoint of the service."""
        started = trio.current_time()
        if route.service is None:
            record.attempts = 1
            target = await self._connect(pod, peer, route.candidates[0], record)
        else:
            target = await self._reach_service(pod, peer, route.service, route.candidates, record)
        record.connect_ms = (trio.current_time() - started) * 1000
        return target

    async def _reach_service(
        self,
        pod: Pod,
        peer: PeerAddress,
        service: ServicePort,
        candidates: Sequence[Endpoint],
        record: ConnectionRecord,
    ) -> _Target:
        """Try endpoint after endpoint while no application byte was sent."""
        tried: set[EndpointAddress] = set()
        last: ConnectionFailure | None = None
        while True:
            try:
                pick = self._balancer.pick(service, candidates, trio.current_time(), exclude=tried)
            except NoEndpoints as none_left:
                raise last or none_left from None
            record.attempts += 1
            try:
                target = await self._connect(pod, peer, pick.endpoint, record)
            except ConnectionFailure as failure:
                pick.failed(trio.current_time())
                if failure.reason not in _ANOTHER_MAY_WORK or record.attempts >= self._max_connect_attempts:
                    raise
                last = failure
                tried.add(pick.endpoint.address)
            except BaseException:
                pick.release(trio.current_time())
                raise
            else:
                pick.connected(trio.current_time())
                target.pick = pick
                return target

    async def _connect(self, pod: Pod, peer: PeerAddress, endpoint: Endpoint, record: ConnectionRecord) -> _Target:
        workload = endpoint.workload
        if workload is None or not workload.enrolled:
            record.chose(endpoint=endpoint.address, destination=workload, destination_identity=None, security="none")
            if workload is None:
                self._router.require_outside(endpoint.address)
            plain = pod.network.upstream_socket(endpoint.address.ip)
            reset_on_close(plain)
            try:
                await connect(plain, endpoint.address.ip, endpoint.address.port, timeout_s=self._connect_timeout_s)
            except BaseException:
                plain.close()
                raise
            return _Target(plain=plain)

        record.chose(
            endpoint=endpoint.address,
            destination=workload,
            destination_identity=workload.identity,
            security="mutual_tls",
        )
        self._gate.admit(record, pod.workload.identity, workload.identity)
        credentials = await self._identities.wait_for(pod.workload.identity)
        key = TunnelKey(pod.workload.uid, pod.workload.identity, endpoint.address.ip, workload.identity)
        message = Open(destination=OriginalDestination(*endpoint.address), source=peer, workload=pod.workload.name)
        dialler = Dialler(
            make_socket=pod.network.upstream_socket,
            context=credentials.client_context,
            not_after=credentials.not_after,
            serial=credentials.serial,
        )
        tunnel = await self._tunnels.open(key, message, dialler)
        try:
            self._gate.admit_tunnel(record, pod.workload.identity, tunnel)
        except ConnectionFailure:
            self._tunnels.discard(tunnel)
            raise
        return _Target(tunnel=tunnel, key=key)

    async def _carry(self, pod: Pod, downstream: socket.socket, target: _Target, record: ConnectionRecord) -> Outcome:
        """Move the bytes until both directions have ended; takes both sockets over."""

        def started(pair: Pair) -> None:
            record.byte_counts = lambda: (pair.down_bytes, pair.up_bytes)

        if target.tunnel is None:
            assert target.plain is not None
            return await self._relay.run_plain(downstream, target.plain, started)
        assert target.key is not None
        outcome: Outcome | None = None
        try:
            outcome = await self._relay.run_tunnel(
                downstream, target.tunnel.lend(), started, why=lambda: record.close_reason
            )
        finally:
            if outcome is None:
                self._tunnels.discard(target.tunnel)
            elif outcome.settlement is not None:
                self._relay.when_settled(outcome.settlement, partial(self._take_back, pod, target.key, target.tunnel))
            else:
                is_whole = outcome.ending is Ending.COMPLETE
                self._take_back(pod, target.key, target.tunnel, outcome.leftover if is_whole else None)
        return outcome

    def _take_back(self, pod: Pod, key: TunnelKey, tunnel: Tunnel, leftover: bytes | None) -> None:
        """Keep a tunnel for the next connection; ``leftover`` is None if it is lost."""
        if leftover is None:
            self._tunnels.discard(tunnel)
            return
        tunnel.take_back(leftover)
        if pod.gone.is_set():
            tunnel.abort()  # nobody would look for it any more, and it would keep the pod's namespace
            self._tunnels.discard(tunnel)
        else:
            self._tunnels.release(key, tunnel)
