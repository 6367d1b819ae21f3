"""The node's own network, seen as one workload's: its addresses, and no other."""

import errno
import socket
from collections.abc import Sequence

from node_agent.capture import sockets
from node_agent.capture.netns import NetworkNamespace
from node_agent.capture.network import Listeners
from node_agent.capture.original_destination import original_destination
from node_agent.capture.pinned import Origins
from node_agent.config import INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT, TUNNEL_PORT
from node_agent.model import OriginalDestination, PeerAddress


class NodeNetwork:
    """Makes sockets that have a workload's addresses.  Sockets handed out belong to whoever asked for them.

    Owns ``namespace``, which is the agent's own; ``origins`` stay the caller's.
    """

    __slots__ = ("_addresses", "_origins", "namespace")
    mode = "cgroup"

    def __init__(self, namespace: NetworkNamespace, *, addresses: Sequence[str], origins: Origins) -> None:
        self.namespace = namespace
        self._addresses = {each: (socket.AF_INET6 if ":" in each else socket.AF_INET) for each in addresses}
        self._origins = origins

    def close(self) -> None:
        self.namespace.close()

    def listen(self) -> Listeners:
        """Bind every port on every address, or nothing; raises OSError."""
        bound: list[socket.socket] = []
        try:
            for port in (OUTBOUND_PORT, INBOUND_PLAINTEXT_PORT, TUNNEL_PORT):
                bound.extend(self._listener(address, family, port) for address, family in self._addresses.items())
        except OSError:
            for listener in bound:
                listener.close()
            raise
        for address in self._addresses:
            self._origins.forget(address)
        for listener in bound:
            sockets.start_listening(listener)
        return Listeners.of(bound)

    def _listener(self, address: str, family: int, port: int) -> socket.socket:
        made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sockets.prepare_listener(made, port)
            made.bind((address, port))
        except OSError as error:
            made.close()
            remedy = "; give the node that address" if error.errno == errno.EADDRNOTAVAIL else ""
            raise OSError(error.errno, f"cannot listen on {address} port {port}: {error.strerror}{remedy}") from error
        return made

    def upstream_socket(self, destination_ip: str) -> socket.socket:
        """Return a socket to connect to ``destination_ip`` with, from the workload's address, if it has such a one."""
        family = socket.AF_INET6 if ":" in destination_ip else socket.AF_INET
        made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sockets.mark_ours(made)
            sockets.tune(made)
            own = self._own(family)
            if own is not None:
                sockets.bind_later(made)
                made.bind((own, 0))
        except OSError:
            made.close()
            raise
        return made

    def application_socket(self, destination_ip: str, *, source_ip: str) -> socket.socket:
        """Return a socket to connect to the workload's program with, which sees ``source_ip`` as its client."""
        family = socket.AF_INET6 if ":" in destination_ip else socket.AF_INET
        made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sockets.prepare_application_socket(made)
            made.bind((source_ip, 0))
        except OSError:
            made.close()
            raise
        return made

    def outbound_destination(self, connection: socket.socket, peer: PeerAddress) -> OriginalDestination:
        """As the programs have filed it; raises ConnectionFailure."""
        return self._origins.outbound(connection, peer)

    def inbound_destination(self, connection: socket.socket, peer: PeerAddress) -> OriginalDestination:
        """As conntrack knows it; raises ConnectionFailure."""
        return original_destination(connection, peer)

    def as_client(self, peer: PeerAddress, destination: OriginalDestination) -> PeerAddress:
        """It speaks to others from its own address, whatever address of the node its program has used."""
        family = socket.AF_INET6 if ":" in destination.ip else socket.AF_INET
        if self._addresses.get(peer.ip) == family:
            return peer
        own = self._own(family)
        return peer if own is None else PeerAddress(own, peer.port)

    def _own(self, family: int) -> str | None:
        return next((address for address, each in self._addresses.items() if each == family), None)
