"""Where was a redirected connection going?

netfilter's REDIRECT keeps the destination in conntrack and hands it out by
``SO_ORIGINAL_DST``.  A listener is dual-stack, so an IPv4 connection arrives on
an IPv6 socket with a v4-mapped peer and must be asked at the IPv4 level.
Addresses leave this file canonical: v4-mapped ones unwrapped.
"""

import socket
import struct
from typing import Any, Final

from node_agent.config import CAPTURE_PORTS
from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.model import OriginalDestination, PeerAddress

_SO_ORIGINAL_DST: Final = 80  # linux/netfilter_ipv4.h; IP6T_SO_ORIGINAL_DST has the same number
_SOCKADDR_IN_BYTES: Final = 16
_SOCKADDR_IN6_BYTES: Final = 28
_MAPPED: Final = "::ffff:"
_port_be = struct.Struct("!H")


def peer_address(address: tuple[Any, ...]) -> PeerAddress:
    """Turn what ``accept`` returned (or ``getsockname``) into a PeerAddress."""
    ip: str = address[0]
    if ip.startswith(_MAPPED) and "." in ip:  # without dots it is another address, as ::ffff:0:102:304 (RFC 2765)
        ip = ip[len(_MAPPED) :]
    elif "%" in ip:
        ip = ip.partition("%")[0]
    return PeerAddress(ip, address[1])


def original_destination(connection: socket.socket, peer: PeerAddress) -> OriginalDestination:
    """Return where ``peer`` wanted to go when the rules redirected it to us.

    Raises ConnectionFailure when the connection was not redirected: somebody
    dialled the agent's own listener.
    """
    try:
        if ":" in peer.ip:
            raw = connection.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, _SOCKADDR_IN6_BYTES)
            ip = socket.inet_ntop(socket.AF_INET6, raw[8:24])
        else:
            raw = connection.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, _SOCKADDR_IN_BYTES)
            ip = socket.inet_ntop(socket.AF_INET, raw[4:8])
    except OSError as error:
        raise ConnectionFailure(
            CloseReason.DESTINATION_NOT_ALLOWED, f"no original destination, the connection was not redirected: {error}"
        ) from error
    (port,) = _port_be.unpack_from(raw, 2)
    destination = OriginalDestination(ip, port)
    # conntrack knows a connection that was not redirected too: then it still has the address it was dialled by.
    # Serving it would mean connecting to ourselves, again and again.
    if port in CAPTURE_PORTS and tuple(destination) == peer_address(connection.getsockname()):
        raise ConnectionFailure(
            CloseReason.DESTINATION_NOT_ALLOWED, f"{destination} is the agent's own listener, dialled directly"
        )
    return destination
