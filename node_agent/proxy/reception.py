"""What the peer of a tunnel asks for: judge it, and connect it to the pod's program.

The same for a connection that has a tunnel to itself (inbound.py) and for one
that shares it with others (shared_inbound.py).
"""

import socket
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from ca.svid import CLOCK_SKEW
from node_agent.config import CAPTURE_PORTS
from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.frames import Open, Verdict, encode_verdict
from node_agent.model import EndpointAddress, OriginalDestination, ServicePort, Workload
from node_agent.proxy.applications import Applications
from node_agent.proxy.egress import Egress
from node_agent.proxy.pod import Pod
from node_agent.proxy.policy_gate import PolicyGate
from node_agent.proxy.trust_gate import TrustGate
from node_agent.registry import Registry
from node_agent.relay import Ending, Pair
from node_agent.telemetry.connection_record import ConnectionRecord
from node_agent.tunnel import Tunnel

CLOSE_REASONS: Final = {
    Ending.PLAIN_RESET: CloseReason.UPSTREAM_RESET,
    Ending.PEER_RESET: CloseReason.DOWNSTREAM_RESET,
    Ending.TUNNEL_LOST: CloseReason.TUNNEL_LOST,
    Ending.PROTOCOL_ERROR: CloseReason.PROTOCOL_ERROR,
    Ending.CUT: CloseReason.INTERNAL_ERROR,  # whoever cut it has written the reason before
}
ACCEPTED: Final = encode_verdict(Verdict(reason=CloseReason.OK))


class Reception:
    """Receives connections for local workloads, on behalf of peers that are proven."""

    def __init__(
        self,
        *,
        registry: Registry,
        gate: TrustGate,
        policies: PolicyGate,
        egress: Egress,
        applications: Applications,
    ) -> None:
        self._registry = registry
        self._gate = gate
        self._policies = policies
        self._egress = egress
        self._applications = applications

    async def receive(self, pod: Pod, tunnel: Tunnel, message: Open, record: ConnectionRecord) -> socket.socket:
        """Return a socket that is connected to what ``message`` asks for, or raise ConnectionFailure.

        The record is in the table of live connections already.
        """
        record.note(
            source=self._source_of(tunnel, message),
            source_address=message.source,
            source_identity=tunnel.peer.identity,
            original_destination=message.destination,
            destination=pod.workload,
            destination_identity=pod.workload.identity,
            security="mutual_tls",
        )
        self._gate.admit_tunnel(record, pod.workload.identity, tunnel)
        outside = self.check(pod, tunnel, message)
        if outside is not None:
            record.note(service=outside, endpoint=EndpointAddress(*message.destination))
        self._policies.admit(record)
        return await self._applications.connect(
            pod,
            message.destination,
            message.source,
            record,
            outside=outside,
            timeout_s=message.connect_timeout_s,
        )

    def _source_of(self, tunnel: Tunnel, message: Open) -> Workload | None:
        """The workload that the peer speaks for, if what we know of it agrees with what the peer proved."""
        workload = self._registry.workload_at(message.source.ip)
        return workload if workload is not None and workload.identity == tunnel.peer.identity else None

    def check(self, pod: Pod, tunnel: Tunnel, message: Open) -> ServicePort | None:
        """Refuse what the peer may not ask, whatever its identity; raises ConnectionFailure.

        Returns the service outside that the pod is asked to be the egress of, None if it is asked for itself.
        """
        require_valid(tunnel)
        if message.source.ip != tunnel.peer_ip:
            raise ConnectionFailure(
                CloseReason.SOURCE_MISMATCH, f"the tunnel comes from {tunnel.peer_ip} but names {message.source.ip}"
            )
        if message.outside is not None:
            return self._egress.require(pod.workload, message.outside, message.destination)
        if message.destination.ip not in pod.workload.addresses:
            raise ConnectionFailure(
                CloseReason.UNKNOWN_DESTINATION, f"{message.destination.ip} is not an address of {pod.workload.name}"
            )
        refuse_capture_ports(message.destination)
        return None


def require_valid(tunnel: Tunnel) -> None:
    """Raise ConnectionFailure if a certificate of the tunnel has expired since its handshake."""
    if datetime.now(UTC) >= tunnel.not_after + CLOCK_SKEW:
        raise ConnectionFailure(CloseReason.CERTIFICATE_EXPIRED, "a certificate expired while the tunnel was idle")


def refuse_capture_ports(destination: OriginalDestination) -> None:
    """Raise ConnectionFailure if somebody wants to be connected to the agent."""
    if destination.port in CAPTURE_PORTS:
        raise ConnectionFailure(
            CloseReason.DESTINATION_NOT_ALLOWED, f"port {destination.port} is the agent's own listener"
        )


def refusal(record: ConnectionRecord) -> bytes:
    """The verdict on a connection that is refused, for the reason in its record."""
    reason = record.close_reason or CloseReason.INTERNAL_ERROR
    policy = record.policy if reason is CloseReason.POLICY_DENIED else None
    return encode_verdict(Verdict(reason=reason, detail=record.detail, policy=policy))


def count(record: ConnectionRecord, *, application_is_plain: bool) -> Callable[[Pair], None]:
    """Let ``record`` read the pair's counters: which way is "sent" depends on who sits where."""

    def started(pair: Pair) -> None:
        if application_is_plain:
            record.byte_counts = lambda: (pair.up_bytes, pair.down_bytes)
        else:
            record.byte_counts = lambda: (pair.down_bytes, pair.up_bytes)

    return started
