"""The story of a connection that a local workload opened.

    accept > where was it going > resolve > admit > choose > tunnel or passthrough > relay > account

Read ``handle`` from top to bottom; each step is one call into one folder.
"""

import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, cast

import trio

from node_agent.balance import Pick
from node_agent.errors import CloseReason
from node_agent.model import PeerAddress
from node_agent.proxy.admission import Admission
from node_agent.proxy.live import LiveConnections
from node_agent.proxy.pod import Accepted, Pod
from node_agent.proxy.policy_gate import cut_failure, cut_reason
from node_agent.proxy.routes import NoBackend, Router
from node_agent.proxy.timeouts import Timekeeper
from node_agent.proxy.trust_gate import TrustGate
from node_agent.proxy.upstream import Connector, Upstream
from node_agent.relay import Ending, Meter, Outcome, Pair, Relay, Stream
from node_agent.telemetry.access_log import AccessLog
from node_agent.telemetry.connection_record import ConnectionRecord
from node_agent.tunnel import Tunnel, TunnelClient, TunnelKey

if TYPE_CHECKING:
    from node_agent.proxy.lanes import Lanes

_CLOSE_REASONS: Final = {
    Ending.COMPLETE: CloseReason.OK,
    Ending.PLAIN_RESET: CloseReason.DOWNSTREAM_RESET,
    Ending.PEER_RESET: CloseReason.UPSTREAM_RESET,
    Ending.TUNNEL_LOST: CloseReason.TUNNEL_LOST,
    Ending.PROTOCOL_ERROR: CloseReason.PROTOCOL_ERROR,
    Ending.CUT: CloseReason.INTERNAL_ERROR,  # whoever cut it has written the reason before
}


class Outbound:
    """Serves connections that local workloads open."""

    def __init__(
        self,
        *,
        access_log: AccessLog,
        live: LiveConnections,
        router: Router,
        admission: Admission,
        connector: Connector,
        tunnels: TunnelClient,
        relay: Relay,
        gate: TrustGate,
        times: Timekeeper,
        lanes: "Lanes | None" = None,
    ) -> None:
        self._access_log = access_log
        self._live = live
        self._router = router
        self._admission = admission
        self._connector = connector
        self._tunnels = tunnels
        self._relay = relay
        self._gate = gate
        self._times = times
        self._lanes = lanes

    async def handle(self, pod: Pod, connection: socket.socket, peer: PeerAddress, scope: trio.CancelScope) -> None:
        """Serve one connection to its end; its failures end in the access record.  Takes ``connection`` over.

        What cuts it cancels ``scope``.
        """
        accepted = Accepted(connection)
        with (
            self._access_log.connection("outbound") as record,
            self._live.track(record, pod.workload.uid, scope) as live,
            accepted as downstream,
        ):
            record.note(source=pod.workload, source_address=peer, source_identity=pod.workload.identity)
            destination = pod.network.outbound_destination(downstream, peer)
            peer = pod.network.as_client(peer, destination)
            record.note(original_destination=destination)

            self._gate.admit(record, pod.workload.identity)
            try:
                route = await self._router.route(destination)
            except NoBackend as failure:
                record.note(service=failure.service)
                raise
            record.note(service=route.service)

            with await self._admission.admit(route, pod.workload.identity, record) as passage:
                upstream = await self._connector.reach(pod, peer, route, record, may_share=passage.meter is None)
                passage.connected()
                try:
                    record.opened()
                    if self._lanes is not None and upstream.key is not None:
                        self._lanes.learn(pod, peer.ip, destination, route, trio.current_time())
                    keep_times = partial(self._times.keep, live, route.traffic.timeouts)
                    outcome = await self._carry(
                        pod, accepted.take(), upstream, record, keep_times=keep_times, meter=passage.meter
                    )
                    _tell_pick(upstream.pick, outcome, record)
                finally:
                    if upstream.pick is not None:
                        upstream.pick.release(trio.current_time())

            if outcome.ending is not Ending.COMPLETE:
                record.failed(cut_failure(outcome.reason or _CLOSE_REASONS[outcome.ending]))

    async def _carry(
        self,
        pod: Pod,
        downstream: socket.socket,
        upstream: Upstream,
        record: ConnectionRecord,
        *,
        keep_times: Callable[[Pair], None],
        meter: Meter | None,
    ) -> Outcome:
        """Move the bytes until both directions have ended; takes both sockets over."""

        def started(pair: Pair) -> None:
            record.byte_counts = lambda: (pair.down_bytes, pair.up_bytes)
            keep_times(pair)
            if upstream.pick is not None:
                upstream.pick.carries(pair, trio.current_time())

        if upstream.plain is not None:
            return await self._relay.run_plain(downstream, upstream.plain, started, meter=meter)
        if upstream.shared is not None:
            return await self._carry_shared(pod, downstream, upstream, record, started)
        tunnel = upstream.tunnel
        assert tunnel is not None
        outcome: Outcome | None = None
        try:
            outcome = await self._relay.run_tunnel(
                downstream, tunnel.lend(), started, why=lambda: cut_reason(record), meter=meter
            )
        finally:
            self._give_back(pod, upstream, tunnel, record, outcome)
        return outcome

    async def _carry_shared(
        self,
        pod: Pod,
        downstream: socket.socket,
        upstream: Upstream,
        record: ConnectionRecord,
        started: Callable[[Pair], None],
    ) -> Outcome:
        """The same in a shared tunnel, until the connection is to have one of its own, and then there."""
        shared, key, dialler = upstream.shared, upstream.key, upstream.dialler
        assert shared is not None
        assert key is not None
        assert dialler is not None

        def admit(own: Tunnel) -> None:
            self._gate.admit_move(record, pod.workload.identity, own)

        stream = cast(Stream, shared.stream)  # what the relay has given, the relay gets
        outcome: Outcome | None = None
        try:
            outcome = await self._relay.run_stream(
                downstream,
                stream,
                started,
                why=lambda: cut_reason(record),
                on_own=lambda: self._tunnels.give_own(shared, key, dialler, admit=admit),
            )
        finally:
            if shared.own is not None:
                self._give_back(pod, upstream, shared.own, record, outcome if stream.has_moved else None)
        return outcome

    def _give_back(
        self, pod: Pod, upstream: Upstream, tunnel: Tunnel, record: ConnectionRecord, outcome: Outcome | None
    ) -> None:
        """A connection has ended in ``tunnel``; ``outcome`` is None if it did not come to that."""
        assert upstream.key is not None
        if outcome is None:
            self._tunnels.discard(tunnel)
            return
        record.count_bytes()
        take_back = partial(self._take_back, pod, upstream.key, tunnel, sent_bytes=record.received_bytes)
        if outcome.settlement is not None:
            self._relay.when_settled(outcome.settlement, take_back)
        else:
            take_back(outcome.leftover if outcome.ending is Ending.COMPLETE else None)

    def _take_back(
        self, pod: Pod, key: TunnelKey, tunnel: Tunnel, leftover: bytes | None, *, sent_bytes: int = 0
    ) -> None:
        """Keep a tunnel for the next connection; ``leftover`` is None if it is lost.

        ``sent_bytes``: from the client to the destination's program.
        """
        if leftover is None:
            self._tunnels.discard(tunnel)
            return
        tunnel.take_back(leftover, sent_bytes=sent_bytes)
        if pod.gone.is_set():
            tunnel.abort()  # nobody would look for it any more, and it would keep the pod's namespace
            self._tunnels.discard(tunnel)
        elif self._gate.is_unwanted(key, tunnel):
            self._tunnels.discard(tunnel)  # revoked while it was neither live nor idle
        else:
            self._tunnels.release(key, tunnel)


def _tell_pick(pick: Pick | None, outcome: Outcome, record: ConnectionRecord) -> None:
    """How the endpoint did: a reset before its first byte counts against it."""
    if pick is None:
        return
    record.count_bytes()
    if record.sent_bytes:
        pick.said_something()
    elif outcome.ending is Ending.PEER_RESET and outcome.reason is None:
        pick.reset_early(trio.current_time())
