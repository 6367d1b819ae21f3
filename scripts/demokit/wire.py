"""What crossed the link between the nodes: what could be read, and which TLS was spoken."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from labkit import pcap
from labkit.pcap import Flow

TUNNEL_PORT: Final = 15008
TLS_1_3: Final = 0x0304
CIPHER_SUITES: Final = {
    0x1301: "TLS_AES_128_GCM_SHA256",
    0x1302: "TLS_AES_256_GCM_SHA384",
    0x1303: "TLS_CHACHA20_POLY1305_SHA256",
}
_SUPPORTED_VERSIONS: Final = 43  # RFC 8446 section 4.2.1


@dataclass(frozen=True, slots=True)
class Hello:
    """What a TLS server chose, read from its ServerHello."""

    version: int
    cipher_suite: int


class Wire:
    """Everything TCP in a recording of the link."""

    def __init__(self, path: Path) -> None:
        seen = list(pcap.packets(path))
        self.packets = len(seen)
        self._opened = pcap.connections(seen)
        self._fresh = pcap.streams(seen)
        payloads: defaultdict[Flow, bytearray] = defaultdict(bytearray)
        for packet in seen:
            payloads[packet.flow] += packet.payload
        self._payloads = {flow: bytes(data) for flow, data in payloads.items()}

    def count(self, text: bytes) -> int:
        """How often ``text`` crossed the link in clear, on connections old and new."""
        return sum(data.count(text) for data in self._payloads.values())

    def opened(self, *, port: int | None = None, source: tuple[str, ...] = ()) -> list[Flow]:
        """The connections that were begun (SYN), to a port or from some addresses only."""
        return [
            flow
            for flow in self._opened
            if (port is None or flow.destination_port == port) and (not source or flow.source in source)
        ]

    def tunnel_bytes(self) -> int:
        """Payload bytes to and from the tunnel port."""
        return sum(
            len(data)
            for flow, data in self._payloads.items()
            if TUNNEL_PORT in (flow.source_port, flow.destination_port)
        )

    def hellos(self) -> list[Hello]:
        """The ServerHello of every tunnel that was opened during the recording."""
        return [
            server_hello(stream) for flow, stream in self._fresh.items() if flow.source_port == TUNNEL_PORT and stream
        ]


def server_hello(stream: bytes) -> Hello:
    """Read the ServerHello at the beginning of a server's bytes (RFC 8446 section 4.1.3)."""
    record = pcap.records(stream)[0]
    _, extensions = pcap.hello(record)
    at = 4 + 2 + 32  # handshake header, legacy version, random
    at += 1 + record.fragment[at]  # legacy session ID
    version = extensions.get(_SUPPORTED_VERSIONS, b"\x03\x03")
    return Hello(int.from_bytes(version, "big"), int.from_bytes(record.fragment[at : at + 2], "big"))
