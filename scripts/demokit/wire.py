"""Read a capture of the link between the nodes: who said what in clear, and which TLS.

Reads the pcap file itself, a few lines, instead of trusting the text that another
program prints of it.  The streams are put together in the order of arrival; the
link is a bridge in this machine's memory, so nothing is reordered.
"""

import ipaddress
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

TUNNEL_PORT: Final = 15008
TLS_1_3: Final = 0x0304
CIPHER_SUITES: Final = {
    0x1301: "TLS_AES_128_GCM_SHA256",
    0x1302: "TLS_AES_256_GCM_SHA384",
    0x1303: "TLS_CHACHA20_POLY1305_SHA256",
}
_PCAP_HEADER_BYTES: Final = 24
_RECORD: Final = struct.Struct("<IIII")
_ETHERNET_BYTES: Final = 14
_IPV6_BYTES: Final = 40
_SYN: Final = 0x02
_ACK: Final = 0x10
_SUPPORTED_VERSIONS: Final = 43  # RFC 8446 section 4.2.1


class Flow(NamedTuple):
    """One direction of one TCP connection."""

    source: str
    source_port: int
    destination: str
    destination_port: int


@dataclass(frozen=True, slots=True)
class Hello:
    """What a TLS server chose, read from its ServerHello."""

    version: int
    cipher_suite: int


class Wire:
    """Everything TCP that a capture holds."""

    def __init__(self, path: Path) -> None:
        """Read ``path``, which may still be growing: an incomplete last packet is left out."""
        self.packets = 0
        self.opened: list[Flow] = []
        streams: dict[Flow, bytearray] = {}
        for frame in _frames(path.read_bytes()):
            self.packets += 1
            segment = _tcp(frame)
            if segment is None:
                continue
            flow, flags, payload = segment
            if flags & (_SYN | _ACK) == _SYN:
                self.opened.append(flow)
            streams.setdefault(flow, bytearray()).extend(payload)
        self.streams = {flow: bytes(data) for flow, data in streams.items() if data}

    def count(self, text: bytes) -> int:
        """How often ``text`` crossed the link in clear."""
        return sum(stream.count(text) for stream in self.streams.values())

    def opened_to(self, port: int) -> list[Flow]:
        """The connections that were begun (SYN) to a port."""
        return [flow for flow in self.opened if flow.destination_port == port]

    def tunnel_bytes(self) -> int:
        """Payload bytes to and from the tunnel port."""
        return sum(
            len(data) for flow, data in self.streams.items() if TUNNEL_PORT in (flow.source_port, flow.destination_port)
        )

    def hellos(self) -> list[Hello]:
        """The ServerHello of every tunnel that was opened during the capture."""
        found = (server_hello(data) for flow, data in self.streams.items() if flow.source_port == TUNNEL_PORT)
        return [hello for hello in found if hello is not None]


def server_hello(stream: bytes) -> Hello | None:
    """Read the ServerHello at the beginning of a server's stream (RFC 8446 section 4.1.3); None if it is not one."""
    if len(stream) < 44 or stream[0] != 22 or stream[5] != 2:
        return None
    position = 5 + 4 + 2 + 32  # record header, handshake header, legacy version, random
    position += 1 + stream[position]  # legacy session id
    (suite,) = struct.unpack_from("!H", stream, position)
    position += 3  # the suite and the compression method
    (left,) = struct.unpack_from("!H", stream, position)
    position += 2
    version = 0x0303
    while left >= 4:
        kind, length = struct.unpack_from("!HH", stream, position)
        if kind == _SUPPORTED_VERSIONS:
            (version,) = struct.unpack_from("!H", stream, position + 4)
        position += 4 + length
        left -= 4 + length
    return Hello(version, suite)


def _frames(data: bytes) -> Iterator[bytes]:
    """The Ethernet frames of a pcap file (little-endian, as this machine writes it)."""
    position = _PCAP_HEADER_BYTES
    while position + _RECORD.size <= len(data):
        _, _, length, _ = _RECORD.unpack_from(data, position)
        position += _RECORD.size
        if position + length > len(data):
            return
        yield data[position : position + length]
        position += length


def _tcp(frame: bytes) -> tuple[Flow, int, bytes] | None:
    """Addresses, flags and payload of a TCP segment; None for everything else."""
    kind = frame[12:14]
    packet = frame[_ETHERNET_BYTES:]
    if kind == b"\x08\x00" and len(packet) >= 20 and packet[9] == 6:
        header = (packet[0] & 15) * 4
        (total,) = struct.unpack_from("!H", packet, 2)
        source, destination = packet[12:16], packet[16:20]
        segment = packet[header : total or None]  # 0: larger than the field holds (segmentation offload)
    elif kind == b"\x86\xdd" and len(packet) >= _IPV6_BYTES and packet[6] == 6:
        (length,) = struct.unpack_from("!H", packet, 4)
        source, destination = packet[8:24], packet[24:40]
        segment = packet[_IPV6_BYTES : _IPV6_BYTES + length if length else None]
    else:
        return None
    if len(segment) < 20:
        return None
    source_port, destination_port = struct.unpack_from("!HH", segment, 0)
    flow = Flow(
        str(ipaddress.ip_address(source)), source_port, str(ipaddress.ip_address(destination)), destination_port
    )
    return flow, segment[13], segment[(segment[12] >> 4) * 4 :]
