"""Which interface of the node is the other end of a pod's veth: rtnetlink(7), without a library."""

import socket
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from node_agent.capture.netns import NetworkNamespace

_RTM_GETLINK: Final = 18
_DUMP: Final = 0x301  # NLM_F_REQUEST, NLM_F_ROOT, NLM_F_MATCH
_DONE: Final = 3
_ERROR: Final = 2
_HEADER: Final = struct.Struct("=IHHII")
_LINK: Final = struct.Struct("=BxHiII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_IFLA_LINK: Final = 5
_IFLA_LINKINFO: Final = 18
_IFLA_INFO_KIND: Final = 1
_TYPE_MASK: Final = 0x3FFF
_LOOPBACK: Final = 772  # ARPHRD_LOOPBACK


class Interface(NamedTuple):
    """``peer`` is the number of the other end, where that is, 0 if there is none."""

    number: int
    is_loopback: bool
    kind: str
    peer: int


def node_ends(namespace: NetworkNamespace) -> list[int]:
    """The node's ends of all interfaces of a pod.

    Raises:
        OSError: one of them is no veth, or its end is not here.
    """
    with namespace:
        inside = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    with inside:
        theirs = [each for each in interfaces(inside) if not each.is_loopback]
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as outside:
        ours = {each.number: each for each in interfaces(outside)}
    for each in theirs:
        here = ours.get(each.peer)
        if each.kind != "veth" or here is None or (here.kind, here.peer) != ("veth", each.number):
            raise OSError(
                0, f"its interface {each.number} ({each.kind or 'a device'}) is no veth that ends on this node"
            )
    return [each.peer for each in theirs]


def interfaces(link: socket.socket) -> Iterator[Interface]:
    """Every interface of the namespace that the rtnetlink socket ``link`` is in; raises OSError."""
    link.settimeout(1.0)
    link.send(_HEADER.pack(_HEADER.size + _LINK.size, _RTM_GETLINK, _DUMP, 1, 0) + _LINK.pack(0, 0, 0, 0, 0))
    while True:
        answer, at = link.recv(1 << 17), 0
        while at < len(answer):
            length, kind, *_ = _HEADER.unpack_from(answer, at)
            if kind == _DONE:
                return
            if kind == _ERROR:
                raise OSError(-struct.unpack_from("=i", answer, at + _HEADER.size)[0], "rtnetlink refused")
            yield _interface(answer[at + _HEADER.size : at + length])
            at += (length + 3) & ~3


def _interface(message: bytes) -> Interface:
    _, hardware, index, _, _ = _LINK.unpack_from(message)
    attributes = dict(_attributes(message[_LINK.size :]))
    information = dict(_attributes(attributes.get(_IFLA_LINKINFO, b"")))
    (peer,) = struct.unpack("=I", attributes.get(_IFLA_LINK, bytes(4)))
    kind = information.get(_IFLA_INFO_KIND, b"").rstrip(b"\0").decode()
    return Interface(index, hardware == _LOOPBACK, kind, peer)


def _attributes(raw: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(raw):
        length, kind = _ATTRIBUTE.unpack_from(raw, at)
        yield kind & _TYPE_MASK, raw[at + _ATTRIBUTE.size : at + length]
        at += max(_ATTRIBUTE.size, (length + 3) & ~3)
