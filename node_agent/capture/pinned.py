"""The maps that ``ringfence bpf load`` has pinned, and how addresses stand in them."""

import errno
import socket
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from bpf.abi import abi
from bpf.errors import BpfError, UnsupportedError
from bpf.pins import Pins, State, open_state
from bpf.syscalls import Map, open_pin
from node_agent.capture.original_destination import peer_address
from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.model import OriginalDestination, PeerAddress

COOKIE: Final = struct.Struct("=Q")
SOCKET: Final = struct.Struct("=Q")
MAPPED: Final = bytes(10) + b"\xff\xff"
_SO_NETNS_COOKIE: Final = 71


def netns_cookie(sock: socket.socket) -> int:
    """The number of the socket's network namespace, used for no other one until the next boot (Linux 5.14)."""
    (cookie,) = COOKIE.unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, COOKIE.size))
    return int(cookie)


def address_bytes(ip: str) -> bytes:
    """16 bytes, IPv4 as ::ffff:a.b.c.d."""
    return socket.inet_pton(socket.AF_INET6, ip) if ":" in ip else MAPPED + socket.inet_pton(socket.AF_INET, ip)


def address_text(address: bytes) -> str:
    """The canonical text of ``address_bytes``."""
    if address.startswith(MAPPED):
        return socket.inet_ntop(socket.AF_INET, address[12:])
    return socket.inet_ntop(socket.AF_INET6, address)


def listener_key(address: bytes, port: int) -> bytes:
    """Key of the map ``listeners``."""
    return abi().structs["listener_key"].pack(ip_be=address, port_be=socket.htons(port))


def open_maps(pins: Pins, names: Iterable[str], *, feature: str) -> dict[str, Map]:
    """Open maps of the version in force; the caller closes them.

    Raises:
        BpfError: nothing is loaded, or another version; the text says what to do.
        UnsupportedError: ``feature`` is off.
    """
    state = open_state(pins)
    if state is None:
        raise BpfError(f"{pins.root}: nothing is loaded; run `ringfence bpf load` before the agent")
    try:
        now = State.read(state)
    finally:
        state.close()
    if now.abi[now.active_slot] != abi().fingerprint:
        raise BpfError(f"{pins.root}: loaded by another version of ringfence; run `ringfence bpf load`")
    found: dict[str, Map] = {}
    try:
        for name in names:
            found[name] = Map(open_pin(pins.map(now.active_slot, name)))
    except OSError as error:
        for each in found.values():
            each.close()
        if error.errno == errno.ENOENT:
            raise UnsupportedError(
                f"{pins.root}: the feature {feature} is off here; `ringfence bpf status` says why"
            ) from error
        raise BpfError(f"{pins.root}: cannot be opened: {error.strerror}") from error
    return found


class Origins:
    """Where connections were going that the programs have sent to the agent; one a process, closed by its owner."""

    def __init__(self, root: Path, *, feature: str) -> None:
        """Raises BpfError if nothing is loaded."""
        self._flows = open_maps(Pins(root), ("flows",), feature=feature)["flows"]
        # Asked for each connection: members by their places, not by name.
        self._key = abi().structs["flow_key"].whole
        self._original = abi().structs["original_destination"].whole

    def close(self) -> None:
        self._flows.close()

    def outbound(
        self, connection: socket.socket, peer: PeerAddress, *, namespace: int | None = None
    ) -> OriginalDestination:
        """Where the workload's program wanted to go; can be asked once.

        ``namespace`` is the cookie of the socket's, if it is known.

        Raises ConnectionFailure when the connection was not redirected: somebody
        dialled the agent's own listener; and when it is reset already.
        """
        local = peer_address(connection.getsockname())
        cookie = netns_cookie(connection) if namespace is None else namespace
        client, listener = address_bytes(peer.ip), address_bytes(local.ip)
        found = self._flows.take(self._key.pack(cookie, client, listener, peer.port, local.port))
        if found is None:
            if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):  # the programs forget those that end so
                raise ConnectionFailure(CloseReason.DOWNSTREAM_RESET, "reset before it was accepted")
            raise ConnectionFailure(
                CloseReason.DESTINATION_NOT_ALLOWED, "no original destination, the connection was not redirected"
            )
        ip_be, port_be, *_ = self._original.unpack(found)
        destination = OriginalDestination(address_text(ip_be), socket.ntohs(port_be & 0xFFFF))
        if tuple(destination) == tuple(local):
            raise ConnectionFailure(
                CloseReason.DESTINATION_NOT_ALLOWED, f"{destination} is the agent's own listener, dialled directly"
            )
        return destination

    def forget(self, listener_ip: str) -> None:
        """Drop what was filed for listeners that are gone: nobody can accept it any more."""
        layout, address = abi().structs["flow_key"], address_bytes(listener_ip)
        for key in [each for each in self._flows if layout.bytes_of(each, "listener_ip_be") == address]:
            self._flows.delete(key)
