"""Read what the lab's tap recorded: classic pcap, Ethernet, IPv4 and IPv6, TCP; and TLS records within.

Small and strict: what it does not know, a cut packet or a hole in a stream, is
an error and not skipped, because who looks for plaintext must have seen every
byte.  The tests and the demo read with it.
"""

import ipaddress
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

SYN: Final = 0x02
ACK: Final = 0x10

_MAGICS: Final = {
    b"\xd4\xc3\xb2\xa1": "<",
    b"\x4d\x3c\xb2\xa1": "<",
    b"\xa1\xb2\xc3\xd4": ">",
    b"\xa1\xb2\x3c\x4d": ">",
}
_ETHERNET: Final = 1
_IPV4: Final = 0x0800
_IPV6: Final = 0x86DD
_TCP: Final = 6


class Flow(NamedTuple):
    """One direction of one TCP connection."""

    source: str
    source_port: int
    destination: str
    destination_port: int

    @property
    def back(self) -> "Flow":
        return Flow(self.destination, self.destination_port, self.source, self.source_port)


class Packet(NamedTuple):
    """One TCP segment."""

    flow: Flow
    flags: int
    sequence: int
    payload: bytes


class Record(NamedTuple):
    """One TLS record (RFC 8446 section 5.1)."""

    kind: int
    version: int
    fragment: bytes


HANDSHAKE: Final = 22
CHANGE_CIPHER_SPEC: Final = 20
APPLICATION_DATA: Final = 23
TLS_1_2: Final = 0x0303
TLS_1_3: Final = 0x0304


def frames(path: Path) -> Iterator[bytes]:
    """Every Ethernet frame of a capture."""
    data = path.read_bytes()
    order = _MAGICS[data[:4]]
    (link_type,) = struct.unpack_from(order + "I", data, 20)
    assert link_type == _ETHERNET, link_type
    header = struct.Struct(order + "IIII")
    at = 24
    while at < len(data):
        _, _, captured, original = header.unpack_from(data, at)
        assert captured == original, "the tap cut a packet"
        at += header.size
        yield data[at : at + captured]
        at += captured


def packets(path: Path) -> Iterator[Packet]:
    """Every TCP segment of a capture, in the order of the capture."""
    for each in frames(path):
        (ether_type,) = struct.unpack_from(">H", each, 12)
        if ether_type == _IPV4:
            packet = _ipv4(each[14:])
        elif ether_type == _IPV6:
            packet = _ipv6(each[14:])
        else:
            packet = None
        if packet is not None:
            yield packet


def _ipv4(packet: bytes) -> Packet | None:
    (total,) = struct.unpack_from(">H", packet, 2)
    (fragment,) = struct.unpack_from(">H", packet, 6)
    assert not fragment & 0x3FFF, "a fragment"
    if packet[9] != _TCP:
        return None
    return _tcp(packet[12:16], packet[16:20], packet[(packet[0] & 15) * 4 : total])


def _ipv6(packet: bytes) -> Packet | None:
    (length,) = struct.unpack_from(">H", packet, 4)
    if packet[6] != _TCP:
        assert packet[6] != 44, "a fragment"
        return None
    return _tcp(packet[8:24], packet[24:40], packet[40 : 40 + length])


def _tcp(source: bytes, destination: bytes, segment: bytes) -> Packet:
    source_port, destination_port, sequence = struct.unpack_from(">HHI", segment)
    flow = Flow(
        str(ipaddress.ip_address(source)), source_port, str(ipaddress.ip_address(destination)), destination_port
    )
    return Packet(flow, segment[13], sequence, segment[(segment[12] >> 4) * 4 :])


def connections(seen: Iterable[Packet]) -> list[Flow]:
    """Who asked whom for a connection: the flow of every first SYN, once each."""
    return list(dict.fromkeys(packet.flow for packet in seen if packet.flags & (SYN | ACK) == SYN))


def streams(seen: Iterable[Packet]) -> dict[Flow, bytes]:
    """The bytes of every direction whose SYN was seen, in order, each byte once."""
    starts: dict[Flow, int] = {}
    pieces: defaultdict[Flow, list[tuple[int, bytes]]] = defaultdict(list)
    for packet in seen:
        if packet.flags & SYN:
            starts[packet.flow] = packet.sequence + 1
        if packet.payload and packet.flow in starts:
            pieces[packet.flow].append(((packet.sequence - starts[packet.flow]) & 0xFFFFFFFF, packet.payload))
    return {flow: _joined(flow, sorted(pieces[flow])) for flow in starts}


def _joined(flow: Flow, pieces: list[tuple[int, bytes]]) -> bytes:
    joined = bytearray()
    for offset, payload in pieces:
        if offset >= 1 << 31:
            continue  # a keepalive probe: one byte before the beginning
        assert offset <= len(joined), f"a hole in {flow} at {len(joined)}"
        joined += payload[len(joined) - offset :]
    return bytes(joined)


def records(stream: bytes) -> list[Record]:
    """The TLS records of one direction; the last may be cut off by the end of the capture."""
    found: list[Record] = []
    at = 0
    while at + 5 <= len(stream):
        kind, version, length = struct.unpack_from(">BHH", stream, at)
        found.append(Record(kind, version, stream[at + 5 : at + 5 + length]))
        at += 5 + length
    return found


def hello(record: Record) -> tuple[int, dict[int, bytes]]:
    """The type of a ClientHello (1) or ServerHello (2) and its extensions (RFC 8446 section 4.1)."""
    body = record.fragment
    kind = body[0]
    assert record.kind == HANDSHAKE, record.kind
    assert kind in (1, 2), kind
    at = 4 + 2 + 32
    at += 1 + body[at]  # session ID
    if kind == 1:
        at += 2 + int.from_bytes(body[at : at + 2], "big")  # cipher suites
        at += 1 + body[at]  # compression methods
    else:
        at += 3
    end = at + 2 + int.from_bytes(body[at : at + 2], "big")
    at += 2
    extensions: dict[int, bytes] = {}
    while at < end:
        name, length = struct.unpack_from(">HH", body, at)
        extensions[name] = body[at + 4 : at + 4 + length]
        at += 4 + length
    return kind, extensions
