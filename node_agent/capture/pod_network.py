"""The agent's foot inside one pod: its namespace, listeners and upstream sockets."""

import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from node_agent.capture.netns import NetworkNamespace
from node_agent.capture.rules import AGENT_MARK
from node_agent.config import INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT, TUNNEL_PORT

_SO_MARK: Final = 36
_IP_TRANSPARENT: Final = 19
_IPV6_TRANSPARENT: Final = 75
_IP_BIND_ADDRESS_NO_PORT: Final = 24
_SPARE_SOCKETS: Final = 8
_BACKLOG: Final = 4096  # bounded by net.core.somaxconn
_LINGER_RESET: Final = struct.pack("ii", 1, 0)
_KEEPALIVE: Final = (  # ztunnel's 180/180/9: a vanished peer is noticed within half an hour
    (socket.TCP_KEEPIDLE, 180),
    (socket.TCP_KEEPINTVL, 180),
    (socket.TCP_KEEPCNT, 9),
)


def _reset_on_close(sock: socket.socket) -> None:
    """Let an application's connection be reset when the agent dies: a FIN would call a cut stream whole.

    The relay takes it back from a stream that has ended in order (relay/ending.py).
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)


def tune(sock: socket.socket) -> None:
    """Set what every socket of the data path wants; accepted sockets inherit it from their listener."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # an urgent byte is a byte of the stream: never lost
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listeners:
    """The three listeners inside a pod; bound, listening, non-blocking."""

    outbound: socket.socket
    inbound_plaintext: socket.socket
    tunnel: socket.socket

    @property
    def in_order(self) -> tuple[socket.socket, socket.socket, socket.socket]:
        """All of them, in the order of the fields."""
        return self.outbound, self.inbound_plaintext, self.tunnel

    def close(self) -> None:
        for listener in self.in_order:
            listener.close()


class PodNetwork:
    """Makes sockets inside one pod; owns the namespace until ``close``.

    Sockets handed out belong to whoever asked for them.
    """

    __slots__ = ("_spare", "namespace")

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
        return Listeners(outbound=bound[0], inbound_plaintext=bound[1], tunnel=bound[2])

    def _listener(self, port: int) -> socket.socket:
        try:
            listener = self.namespace.tcp_socket(socket.AF_INET6)
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            address = "::"
        except OSError:  # a kernel without IPv6
            listener = self.namespace.tcp_socket(socket.AF_INET)
            address = "0.0.0.0"  # inside the pod, behind its rules
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tune(listener)
            # What a listener accepts inherits its options.
            if port == TUNNEL_PORT:
                # Tunnels may be waiting already when the rules come, and the pod begins to track connections:
                # their next packet looks like one that the pod's own program sends, and would be redirected.
                listener.setsockopt(socket.SOL_SOCKET, _SO_MARK, AGENT_MARK)
            else:
                _reset_on_close(listener)
            listener.bind((address, port))
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
        return listener

    def upstream_socket(self, destination_ip: str) -> socket.socket:
        """Return a socket to connect to ``destination_ip`` with, exempt from redirection."""
        made = self.namespace.tcp_socket(socket.AF_INET6 if ":" in destination_ip else socket.AF_INET)
        try:
            made.setsockopt(socket.SOL_SOCKET, _SO_MARK, AGENT_MARK)
            tune(made)
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
                each.setsockopt(socket.SOL_SOCKET, _SO_MARK, AGENT_MARK)
                _reset_on_close(each)
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                each.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
                if family == socket.AF_INET6:
                    each.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
                else:
                    each.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
                each.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        except OSError:
            for each in made:
                each.close()
            raise
        self._spare[family] += made
