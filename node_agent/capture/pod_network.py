"""The agent's foot inside one pod: its namespace, listeners and upstream sockets."""

import socket
from pathlib import Path
from typing import Final, Self

from node_agent.capture import sockets
from node_agent.capture.netns import NetworkNamespace
from node_agent.capture.network import Listeners
from node_agent.capture.original_destination import original_destination
from node_agent.capture.rules import RETURN_MARK
from node_agent.config import INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT, TUNNEL_PORT
from node_agent.model import OriginalDestination, PeerAddress

_SPARE_SOCKETS: Final = 8


class PodNetwork:
    """Makes sockets inside one pod; owns the namespace until ``close``.

    Sockets handed out belong to whoever asked for them.
    """

    __slots__ = ("_spare", "namespace")
    mode = "inpod"

    def __init__(self, namespace: NetworkNamespace) -> None:
        """Take over the pod's namespace."""
        self.namespace = namespace
        self._spare: dict[int, list[socket.socket]] = {socket.AF_INET: [], socket.AF_INET6: []}

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the pod's namespace at ``path``; raises OSError."""
        return cls(NetworkNamespace.open(path))

    @classmethod
    def of_descriptor(cls, fd: int, *, home: int) -> Self:
        """Take over ``fd``, the pod's namespace; ``home`` is ours, and stays the caller's.  Opens nothing."""
        return cls(NetworkNamespace(fd, home=home))

    def close(self) -> None:
        for spare in self._spare.values():
            while spare:
                spare.pop().close()
        self.namespace.close()

    def listen(self) -> Listeners:
        """Bind all three listeners or none; raises OSError."""
        bound: list[socket.socket] = []
        for port in (OUTBOUND_PORT, INBOUND_PLAINTEXT_PORT, TUNNEL_PORT):
            try:
                bound.append(self._listener(port))
            except OSError as error:
                for listener in bound:
                    listener.close()
                text = f"cannot listen on port {port} inside the pod: {error.strerror}"
                raise OSError(error.errno, text) from error
        return Listeners.of(bound)

    def _listener(self, port: int) -> socket.socket:
        try:
            listener = self.namespace.tcp_socket(socket.AF_INET6)
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            address = "::"
        except OSError:  # a kernel without IPv6
            listener = self.namespace.tcp_socket(socket.AF_INET)
            address = "0.0.0.0"  # inside the pod, behind its rules
        try:
            sockets.prepare_listener(listener, port)
            listener.bind((address, port))
            sockets.start_listening(listener)
        except OSError:
            listener.close()
            raise
        return listener

    def upstream_socket(self, destination_ip: str) -> socket.socket:
        """Return a socket to connect to ``destination_ip`` with, exempt from redirection."""
        made = self.namespace.tcp_socket(socket.AF_INET6 if ":" in destination_ip else socket.AF_INET)
        try:
            sockets.mark_ours(made)
            sockets.tune(made)
        except OSError:
            made.close()
            raise
        return made

    def application_socket(self, destination_ip: str, *, source_ip: str) -> socket.socket:
        """Return a socket to connect to the pod's own application with, which sees ``source_ip`` as its client.

        That need not be an address of the pod (IP_TRANSPARENT; the rules route
        the answers back).  No keepalive: both ends live on this kernel.
        """
        family = socket.AF_INET6 if ":" in destination_ip else socket.AF_INET
        spare = self._spare[family]
        if not spare:
            self._make_spare(family)
        made = spare.pop()
        try:
            made.bind((source_ip, 0))
        except OSError:
            made.close()
            raise
        return made

    def _make_spare(self, family: int) -> None:
        """Prepare some sockets for one visit to the pod's namespace: every inbound connection needs one."""
        made = self.namespace.tcp_sockets(family, _SPARE_SOCKETS)
        try:
            for each in made:
                sockets.prepare_application_socket(each, mark=RETURN_MARK)
        except OSError:
            for each in made:
                each.close()
            raise
        self._spare[family] += made

    def outbound_destination(self, connection: socket.socket, peer: PeerAddress) -> OriginalDestination:
        """As conntrack knows it; raises ConnectionFailure."""
        return original_destination(connection, peer)

    def inbound_destination(self, connection: socket.socket, peer: PeerAddress) -> OriginalDestination:
        """As conntrack knows it; raises ConnectionFailure."""
        return original_destination(connection, peer)

    def as_client(self, peer: PeerAddress, _destination: OriginalDestination) -> PeerAddress:
        """It has no addresses but its own."""
        return peer
