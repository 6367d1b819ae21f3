"""What an inbound connection is connected to: the pod's program, or a place outside that the pod is the egress of."""

import socket

import trio

from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.model import OriginalDestination, PeerAddress, ServicePort
from node_agent.proxy import proxy_protocol
from node_agent.proxy.pod import Pod
from node_agent.relay import reset_on_close
from node_agent.telemetry.connection_record import ConnectionRecord
from node_agent.tunnel import connect


class Applications:
    """Connects from inside the pods; the sockets are the caller's to close."""

    def __init__(self, *, connect_timeout_s: float) -> None:
        self._connect_timeout_s = connect_timeout_s

    async def connect(
        self,
        pod: Pod,
        destination: OriginalDestination,
        client: PeerAddress,
        record: ConnectionRecord,
        *,
        outside: ServicePort | None = None,
        timeout_s: float | None = None,
    ) -> socket.socket:
        """Connect to the pod's program as ``client``, or to ``outside`` as the pod; raises ConnectionFailure.

        ``timeout_s`` counts instead of the agent's own.
        """
        started = trio.current_time()
        record.attempts += 1
        timeout_s = timeout_s or self._connect_timeout_s
        if outside is None:
            upstream = await self._to_program(pod, destination, client, record, timeout_s)
        else:
            upstream = await self._to_outside(pod, destination, timeout_s)
        record.connect_ms = (trio.current_time() - started) * 1000
        return upstream

    async def _to_program(
        self,
        pod: Pod,
        destination: OriginalDestination,
        client: PeerAddress,
        record: ConnectionRecord,
        timeout_s: float,
    ) -> socket.socket:
        upstream = pod.network.application_socket(destination.ip, source_ip=client.ip)
        try:
            await connect(upstream, destination.ip, destination.port, timeout_s=timeout_s)
            if destination.port in pod.workload.proxy_protocol_ports:
                # The send queue of a new connection is empty: the header fits.
                upstream.send(proxy_protocol.header(client, destination, record.source_identity))
        except OSError as error:
            upstream.close()
            raise ConnectionFailure(
                CloseReason.CONNECT_FAILED, f"the program did not take the PROXY protocol header: {error.strerror}"
            ) from error
        except BaseException:
            upstream.close()
            raise
        return upstream

    async def _to_outside(self, pod: Pod, destination: OriginalDestination, timeout_s: float) -> socket.socket:
        """From the egress pod, whose address the place outside sees."""
        upstream = pod.network.upstream_socket(destination.ip)
        reset_on_close(upstream)
        try:
            await connect(upstream, destination.ip, destination.port, timeout_s=timeout_s)
        except BaseException:
            upstream.close()
            raise
        return upstream
