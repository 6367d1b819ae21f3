"""The stories of connections that arrive for a local workload.

Through a tunnel:

    prove the peer > (hear OPEN > check > authorize > connect the application > verdict > relay > account)*

In plaintext, from workloads that are not enrolled:

    where was it going > authorize (mode, policies) > connect the application > relay > account

The phases differ in what can still be told: before the verdict a failure is
told to the source's agent, which tells its user; after it only bytes, EOF and
RESET travel.
"""

import logging
import socket
import ssl
from datetime import datetime
from typing import Final

import trio

from ca.spiffe import SpiffeId
from node_agent.drain import Drain
from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.frames import Check, Open, Verdict, encode_verdict
from node_agent.identity import Identities
from node_agent.model import OriginalDestination, PeerAddress
from node_agent.proxy import proxy_protocol
from node_agent.proxy.applications import Applications
from node_agent.proxy.egress import Egress
from node_agent.proxy.elsewhere import Elsewhere
from node_agent.proxy.health_probe import probe
from node_agent.proxy.live import LiveConnections
from node_agent.proxy.pod import Accepted, Pod
from node_agent.proxy.policy_gate import PolicyGate, cut_failure, cut_reason
from node_agent.proxy.reception import (
    ACCEPTED,
    CLOSE_REASONS,
    Reception,
    count,
    refusal,
    refuse_capture_ports,
)
from node_agent.proxy.shared_inbound import SharedInbound
from node_agent.proxy.trust_gate import TrustGate
from node_agent.registry import Registry
from node_agent.relay import Ending, Relay, Settlement
from node_agent.telemetry.access_log import AccessLog
from node_agent.telemetry.connection_record import ConnectionRecord
from node_agent.tunnel import Attach, Share, Tunnel, TunnelLost, TunnelServer

_log = logging.getLogger("ringfence.inbound")

_PLAIN_CLOSE_REASONS: Final = CLOSE_REASONS | {
    Ending.PLAIN_RESET: CloseReason.DOWNSTREAM_RESET,
    Ending.PEER_RESET: CloseReason.UPSTREAM_RESET,
}


class Inbound:
    """Serves connections that arrive for local workloads."""

    def __init__(
        self,
        *,
        access_log: AccessLog,
        live: LiveConnections,
        drain: Drain,
        registry: Registry,
        identities: Identities,
        server: TunnelServer,
        relay: Relay,
        gate: TrustGate,
        policies: PolicyGate,
        egress: Egress,
        connect_timeout_s: float,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        """``elsewhere``: the other processes that accept for the same pods."""
        self._access_log = access_log
        self._live = live
        self._drain = drain
        self._registry = registry
        self._identities = identities
        self._server = server
        self._relay = relay
        self._gate = gate
        self._policies = policies
        self._applications = Applications(connect_timeout_s=connect_timeout_s)
        self._reception = Reception(
            registry=registry, gate=gate, policies=policies, egress=egress, applications=self._applications
        )
        self._elsewhere = elsewhere
        self._shared = SharedInbound(
            access_log=access_log,
            live=live,
            drain=drain,
            relay=relay,
            gate=gate,
            reception=self._reception,
            elsewhere=elsewhere,
        )

    # -- through a tunnel -----------------------------------------------------

    async def handle_tunnel(
        self, pod: Pod, connection: socket.socket, peer: PeerAddress, _scope: trio.CancelScope
    ) -> None:
        """Serve one tunnel, connection after connection, until it ends.  Takes ``connection`` over.

        Each connection has a scope of its own: who cuts one does not end the tunnel.
        """
        accepted_at = self._access_log.now()
        await self._serve_tunnel(pod, peer, accepted_at, await self._prove(pod, connection, peer, accepted_at))

    async def handle_passed(
        self, pod: Pod, connection: socket.socket, peer: PeerAddress, accepted_at: float, _scope: trio.CancelScope
    ) -> None:
        """Serve a tunnel that another process has accepted, as if we had, and never pass it on."""
        tunnel = await self._prove(pod, connection, peer, accepted_at, may_pass_on=False)
        await self._serve_tunnel(pod, peer, accepted_at, tunnel)

    async def _serve_tunnel(self, pod: Pod, peer: PeerAddress, accepted_at: float, tunnel: Tunnel | None) -> None:
        if tunnel is None:
            return
        try:
            fresh_since: float | None = accepted_at
            while (request := await self._next(pod, tunnel, peer, fresh_since)) is not None:
                fresh_since = None
                if not await self._grant(pod, tunnel, peer, request):
                    return
        finally:
            if pod.gone.is_set():
                tunnel.abort()
            else:
                tunnel.close()

    async def _grant(self, pod: Pod, tunnel: Tunnel, peer: PeerAddress, request: Open | Share | Attach) -> bool:
        """Do what the source wants of the tunnel; False when it can not be used again."""
        try:
            match request:
                case Share():
                    await self._shared.serve(pod, tunnel, request.token)
                    _log.debug("shared tunnel from %s ended", peer)
                    return False
                case Attach():
                    return await self._shared.lend(pod, tunnel, request.token, request.stream_id)
                case Open():
                    if request.check is None:
                        return await self._serve(pod, tunnel, request)
                    return await self._answer_check(pod, tunnel, request, request.check)
        except TunnelLost:
            pass
        except ConnectionFailure as failure:
            self._record_refusal(pod, peer, failure, began_at=None, proven=tunnel.peer.identity)
        return False

    async def _prove(
        self,
        pod: Pod,
        connection: socket.socket,
        peer: PeerAddress,
        accepted_at: float,
        *,
        may_pass_on: bool = True,
    ) -> Tunnel | None:
        """Complete the handshake; a peer that proves nothing gets an access record of its own.

        None as well when the tunnel belongs to another process, which has it now.
        """
        serial = 0
        elsewhere = self._elsewhere

        def pass_on(label: str) -> bool:
            uid = pod.workload.uid
            assert elsewhere is not None
            return not self._shared.has(uid, label) and elsewhere.pass_on(uid, label, connection, peer, accepted_at)

        async def context() -> tuple[ssl.SSLContext, datetime]:
            nonlocal serial
            credentials = await self._identities.wait_for(pod.workload.identity)
            serial = credentials.serial
            return credentials.server_context, credentials.not_after

        try:
            tunnel = await self._server.accept(
                connection,
                peer.ip,
                context,
                waited_s=self._access_log.now() - accepted_at,
                pass_on=pass_on if may_pass_on and elsewhere is not None else None,
            )
            if tunnel is not None:
                tunnel.own_serial = serial
            return tunnel
        except ConnectionFailure as failure:
            self._record_refusal(pod, peer, failure, began_at=accepted_at)
            return None

    def _record_refusal(
        self,
        pod: Pod,
        peer: PeerAddress,
        failure: ConnectionFailure,
        *,
        began_at: float | None,
        proven: SpiffeId | None = None,
    ) -> None:
        with self._access_log.connection("inbound", began_at=began_at) as record:
            record.note(
                source_address=peer,
                source_identity=proven,
                destination=pod.workload,
                destination_identity=pod.workload.identity,
                security="mutual_tls",
            )
            raise failure

    async def _next(
        self, pod: Pod, tunnel: Tunnel, peer: PeerAddress, fresh_since: float | None
    ) -> Open | Share | Attach | None:
        """Wait for the next connection; None when the tunnel has ended.

        ``fresh_since`` is when the tunnel was accepted, until it has carried its first connection.
        """
        first = fresh_since is not None
        patience_s = self._server.patience_s(first=first)
        try:
            with self._drain.idle(patience_s):
                return await self._server.next_request(tunnel, first=first)
            if not self._drain.begun.is_set():
                raise ConnectionFailure(CloseReason.OPEN_TIMEOUT, f"nothing was asked for {patience_s:g} s")
        except TunnelLost as lost:
            if lost.within_frame:
                self._record_refusal(pod, peer, lost, began_at=fresh_since, proven=tunnel.peer.identity)
            _log.debug("tunnel from %s ended: %s", peer, lost.detail)
        except ConnectionFailure as failure:
            if first or failure.reason is not CloseReason.OPEN_TIMEOUT:
                self._record_refusal(pod, peer, failure, began_at=fresh_since, proven=tunnel.peer.identity)
        return None

    async def _answer_check(self, pod: Pod, tunnel: Tunnel, message: Open, check: Check) -> bool:
        """Say whether the application would be connected; False when the tunnel is gone.

        It is no connection: no record, no metric.
        """
        verdict = Verdict(reason=CloseReason.DRAINED, is_check=True)
        try:
            self._gate.admit_check(pod.workload.identity, tunnel)
            outside = self._reception.check(pod, tunnel, message)
            self._policies.admit_check(pod.workload, tunnel, message.destination, message.source.ip)
            ip, port = message.destination
            with self._drain.idle():
                sock = (
                    pod.network.application_socket(ip, source_ip=message.source.ip)
                    if outside is None
                    else pod.network.upstream_socket(ip)
                )
                is_greeted = outside is None and port in pod.workload.proxy_protocol_ports
                greeting = proxy_protocol.LOCAL if is_greeted else b""
                await probe(sock, ip, port, check, greeting=greeting)
                verdict = Verdict(reason=CloseReason.OK, is_check=True)
        except ConnectionFailure as failure:
            verdict = Verdict(reason=failure.reason, detail=failure.detail, is_check=True)
        except OSError as error:  # of descriptors, or the pod's namespace is gone
            verdict = Verdict(reason=CloseReason.INTERNAL_ERROR, detail=str(error), is_check=True)
        try:
            await tunnel.send(encode_verdict(verdict))
        except ConnectionFailure:
            return False  # who asked has not waited for it
        return True

    async def _serve(self, pod: Pod, tunnel: Tunnel, message: Open) -> bool:
        """Serve one connection in ``tunnel``; False when the tunnel can not be used again."""
        ending: Ending | None = None
        settlement: Settlement | None = None
        is_answered = False
        with (
            self._access_log.connection("inbound", trace_parent=message.trace_parent) as record,
            self._live.track(record, pod.workload.uid),
        ):
            try:
                upstream = await self._reception.receive(pod, tunnel, message, record)
            except ConnectionFailure as failure:
                # First the reason: the peer may be gone already, which is no reason of its own.
                record.failed(failure)
                is_answered = True
                await tunnel.send(refusal(record))
                ending = Ending.COMPLETE
                raise

            accepted = Accepted(upstream)
            with accepted:
                is_answered = True
                await tunnel.send(ACCEPTED)
                record.opened()
                outcome = await self._relay.run_tunnel(
                    accepted.take(),
                    tunnel.lend(),
                    count(record, application_is_plain=True),
                    why=lambda: cut_reason(record),
                )
            ending, settlement = outcome.ending, outcome.settlement
            if ending is Ending.COMPLETE:
                tunnel.take_back(outcome.leftover)
            else:
                record.failed(cut_failure(outcome.reason or CLOSE_REASONS[ending]))
        if not is_answered:
            return await self._answer_cut(tunnel, record)
        if settlement is not None and (leftover := await self._relay.settled(settlement)) is not None:
            tunnel.take_back(leftover)
            return True
        return ending is Ending.COMPLETE

    async def _answer_cut(self, tunnel: Tunnel, record: ConnectionRecord) -> bool:
        """Say why a connection was cut that had no verdict yet; False when the tunnel is gone."""
        try:
            await tunnel.send(refusal(record))
        except ConnectionFailure:
            return False
        return True

    # -- in plaintext -----------------------------------------------------------

    async def handle_plaintext(
        self, pod: Pod, connection: socket.socket, peer: PeerAddress, scope: trio.CancelScope
    ) -> None:
        """Serve one plaintext connection, or refuse it; what cuts it cancels ``scope``.  Takes ``connection`` over."""
        accepted = Accepted(connection)
        with (
            self._access_log.connection("inbound") as record,
            self._live.track(record, pod.workload.uid, scope),
            accepted as downstream,
        ):
            record.note(
                source=self._registry.workload_at(peer.ip),
                source_address=peer,
                destination=pod.workload,
                destination_identity=pod.workload.identity,
            )
            destination = pod.network.inbound_destination(downstream, peer)
            record.note(original_destination=destination)

            self._gate.admit(record, pod.workload.identity)
            self._check_plaintext(pod, destination)
            self._policies.admit(record)
            upstream = await self._applications.connect(pod, destination, peer, record)
            record.opened()
            outcome = await self._relay.run_plain(accepted.take(), upstream, count(record, application_is_plain=False))
            if outcome.ending is not Ending.COMPLETE:
                record.close_because(_PLAIN_CLOSE_REASONS[outcome.ending])

    def _check_plaintext(self, pod: Pod, destination: OriginalDestination) -> None:
        if destination.ip not in pod.workload.addresses:
            raise ConnectionFailure(
                CloseReason.UNKNOWN_DESTINATION, f"{destination.ip} is not an address of {pod.workload.name}"
            )
        refuse_capture_ports(destination)
