"""What sockets of the data path are told when they are made, in whatever network they are."""

import socket
import struct
from typing import Final

from node_agent.capture.rules import AGENT_MARK
from node_agent.config import TUNNEL_PORT

_SO_MARK: Final = 36
_IP_TRANSPARENT: Final = 19
_IPV6_TRANSPARENT: Final = 75
_IP_BIND_ADDRESS_NO_PORT: Final = 24
_BACKLOG: Final = 4096  # bounded by net.core.somaxconn
_LINGER_RESET: Final = struct.pack("ii", 1, 0)
_KEEPALIVE: Final = (  # ztunnel's 180/180/9: a vanished peer is noticed within half an hour
    (socket.TCP_KEEPIDLE, 180),
    (socket.TCP_KEEPINTVL, 180),
    (socket.TCP_KEEPCNT, 9),
)


def reset_with_us(sock: socket.socket) -> None:
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


def mark_ours(sock: socket.socket) -> None:
    """Exempt it from redirection."""
    sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, AGENT_MARK)


def bind_later(sock: socket.socket) -> None:
    """Let ``bind`` to port 0 leave the choice of the port to ``connect``, which may use one for many destinations."""
    sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)


def prepare_listener(listener: socket.socket, port: int) -> None:
    """Set what the listener on ``port``, and what it will accept, wants."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    tune(listener)
    if port == TUNNEL_PORT:
        # Tunnels may be waiting already when the rules come, and the pod begins to track connections:
        # their next packet looks like one that the pod's own program sends, and would be redirected.
        mark_ours(listener)
    else:
        reset_with_us(listener)


def start_listening(listener: socket.socket) -> None:
    listener.listen(_BACKLOG)


def prepare_application_socket(sock: socket.socket, *, mark: int = AGENT_MARK) -> None:
    """Set what a connection to a local application wants, which may come from any address (IP_TRANSPARENT).

    ``mark``: by it what captures knows the connection, and routes its answers back.
    No keepalive: both ends live on this kernel.
    """
    sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, mark)
    reset_with_us(sock)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
    bind_later(sock)
