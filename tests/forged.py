"""SYNs with forged source addresses, and what of them arrives."""

import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from tests.mesh_builder import Mesh, Pod


@contextmanager
def without_the_labs_own_rule(node: int = 1) -> Iterator[None]:
    """The nodes of the lab drop what is forged, too."""

    def nft(*command: str, stdin: str = "") -> str:
        inside = ["nsenter", f"--net={Mesh.node_netns(node)}", "nft", *command]
        return subprocess.run(inside, input=stdin, capture_output=True, text=True, check=True).stdout

    rule = nft("list", "table", "inet", "rf_spoof")
    nft("delete", "table", "inet", "rf_spoof")
    try:
        yield
    finally:
        nft("-f", "-", stdin=rule)


SYN = 2
ACK = 16


def send_syn(
    pod: Pod,
    source: str,
    target: str,
    port: int,
    *,
    source_port: int = 45000,
    flags: int = SYN,
    mark: int = 0,
    device: str = "",
) -> None:
    """A SYN with any source address, or another packet without a connection.

    ``mark`` and ``device`` are those of its sender's socket.
    """
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    addresses = socket.inet_pton(family, source) + socket.inet_pton(family, target)
    segment = struct.pack("!HHIIBBHHH", source_port, port, 1, 0, 5 << 4, flags, 64240, 0, 0)
    pseudo = addresses + struct.pack("!II", len(segment), 6)
    segment = segment[:16] + struct.pack("!H", _checksum(pseudo + segment)) + segment[18:]
    if family == socket.AF_INET6:
        packet = struct.pack("!IHBB", 6 << 28, len(segment), 6, 64) + addresses + segment
    else:
        packet = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 1, 0, 64, 6, 0) + addresses + segment
    raw = pod.inside(lambda: socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW))
    with raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        raw.sendto(packet, (target, 0))


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def next_syn_source(seen: socket.socket, target: str, port: int) -> str:
    """The source address of the next SYN from port 45000 that has arrived."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    first, header = (8, 40) if family == socket.AF_INET6 else (12, 20)
    width = 16 if family == socket.AF_INET6 else 4
    while True:
        packet = seen.recv(2048)
        if packet[header : header + 4] == struct.pack("!HH", 45000, port) and len(packet) > header + 13:
            return socket.inet_ntop(family, packet[first : first + width])
