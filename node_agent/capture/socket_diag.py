"""End a TCP socket of a pod from outside: SOCK_DESTROY of sock_diag(7), always with the socket's cookie.

Without the cookie the kernel would look for whoever matches the addresses, as
for an arriving packet: in a steered pod it would find, and end, the agent's own
listener.
"""

import errno
import os
import socket
import struct
from typing import Final

from node_agent.capture.netns import NetworkNamespace

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DESTROY: Final = 21
_FLAGS: Final = 5  # NLM_F_REQUEST, NLM_F_ACK
_HEADER: Final = struct.Struct("=IHHII")
_REQUEST: Final = struct.Struct("=BBBBI")
_ERROR_AT: Final = 16
_MAPPED: Final = bytes(10) + b"\xff\xff"
_NO_COOKIE: Final = 1  # cookies of sockets begin far above (sock_gen_cookie)


def destroy(namespace: NetworkNamespace, cookie: int, *, local: tuple[bytes, int], remote: tuple[bytes, int]) -> bool:
    """End the socket ``cookie`` of ``namespace``: its program gets ECONNABORTED, its peer RST.  False: it is gone.

    Addresses are 16 bytes, IPv4 as ::ffff:a.b.c.d.

    Raises:
        OSError: the kernel refused.
    """
    with namespace:
        link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
    with link:
        link.settimeout(1.0)
        link.send(_message(cookie, local, remote))
        (error,) = struct.unpack_from("=i", link.recv(4096), _ERROR_AT)
    if error and -error != errno.ENOENT:
        raise OSError(-error, os.strerror(-error))
    return not error


def is_supported(namespace: NetworkNamespace) -> bool:
    """Whether the kernel can (CONFIG_INET_DIAG_DESTROY); asked for a socket that does not exist."""
    nobody = (_MAPPED + b"\x7f\0\0\1", 1)
    try:
        destroy(namespace, _NO_COOKIE, local=nobody, remote=nobody)
    except OSError:
        return False
    return True


def _message(cookie: int, local: tuple[bytes, int], remote: tuple[bytes, int]) -> bytes:
    """Of the inet_diag_req_v2 of linux/inet_diag.h."""
    (local_ip, local_port), (remote_ip, remote_port) = local, remote
    family = socket.AF_INET6
    if local_ip.startswith(_MAPPED):
        family = socket.AF_INET  # also of an IPv6 socket
        local_ip, remote_ip = local_ip[12:].ljust(16, b"\0"), remote_ip[12:].ljust(16, b"\0")
    body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF)
    body += struct.pack("!HH", local_port, remote_port) + local_ip + remote_ip
    body += struct.pack("=IQ", 0, cookie)
    return _HEADER.pack(_HEADER.size + len(body), _SOCK_DESTROY, _FLAGS, 1, 0) + body
