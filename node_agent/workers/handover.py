"""A worker's part when it accepts a tunnel that belongs to another worker's shared tunnel, and the other way round."""

import socket
from collections.abc import Callable, Sequence

from node_agent.model import PeerAddress
from node_agent.proxy.pod import Pod
from node_agent.workers.channel import Channel
from node_agent.workers.passing import give_up
from node_agent.workers.tunnel_messages import (
    MOST_UNDER_WAY,
    PassedOn,
    PassOn,
    SharedTunnelEnded,
    Taken,
    TakeTunnel,
    TunnelShared,
)

Serve = Callable[[Pod, socket.socket, PeerAddress, float], None]
"""Serves a connection as if it had just been accepted (``LocalServer.serve_passed``)."""


class Handover:
    """Tells the parent of this worker's shared tunnels, and exchanges connections with it (proxy/elsewhere.py)."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._under_way = 0

    def began(self, uid: str, label: str) -> None:
        """A shared tunnel is here."""
        self._channel.post(TunnelShared(uid=uid, label=label))

    def ended(self, uid: str, label: str) -> None:
        """It is no more."""
        self._channel.post(SharedTunnelEnded(uid=uid, label=label))

    def pass_on(self, uid: str, label: str, connection: socket.socket, peer: PeerAddress, accepted_at: float) -> bool:
        """Take over a connection, unless too many are under way."""
        if self._under_way >= MOST_UNDER_WAY:
            return False
        self._under_way += 1
        message = PassOn(uid=uid, label=label, peer=peer, accepted_at=accepted_at)
        self._channel.give(message, [connection.detach()])
        return True

    def hear(
        self, message: TakeTunnel | PassedOn, descriptors: Sequence[int], *, pod: Pod | None, serve: Serve
    ) -> None:
        """Do what the parent says; ``pod`` is the one that is meant, if it is served.  Takes the descriptors over."""
        if isinstance(message, PassedOn):
            self._under_way -= 1
            return
        if message.is_back:
            self._under_way -= 1
        else:
            self._channel.post(Taken())
        (connection,) = descriptors
        if pod is None or self._channel.is_short:
            give_up(connection)
            return
        sock = socket.socket(fileno=connection)
        sock.setblocking(False)
        serve(pod, sock, message.peer, message.accepted_at)
