"""PROXY protocol v2: who the client is, told to an application that wants to know.  Sans-I/O.

https://www.haproxy.org/download/1.8/doc/proxy-protocol.txt, section 2.2.  The
header goes before the first byte of the client.  The client's proven identity
stands in a TLV of type 0xD0, of the range for custom ones (section 2.2.7), as
Istio's ztunnel sends it; without a proof there is none.
"""

import ipaddress
import struct
from typing import Final

from ca.spiffe import SpiffeId
from node_agent.model import OriginalDestination, PeerAddress

SPIFFE_ID_TLV: Final = 0xD0
_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_VERSION_2_LOCAL: Final = 0x20
_VERSION_2_PROXY: Final = 0x21
_TCP_OVER: Final = {4: 0x11, 6: 0x21}
_TLV: Final = struct.Struct(">BH")

# "The connection was established on purpose by the proxy without being relayed.  [...] Such connections exist
# when the proxy sends health checks to the server." (section 2.2)
LOCAL: Final = _SIGNATURE + struct.pack(">BBH", _VERSION_2_LOCAL, 0, 0)


def header(client: PeerAddress, destination: OriginalDestination, identity: SpiffeId | None) -> bytes:
    """The header of one connection, at most 2.2 KiB; both addresses are of one IP version."""
    source, target = ipaddress.ip_address(client.ip), ipaddress.ip_address(destination.ip)
    body = source.packed + target.packed + struct.pack(">HH", client.port, destination.port)
    if identity is not None:
        said = str(identity).encode("ascii")
        body += _TLV.pack(SPIFFE_ID_TLV, len(said)) + said
    return _SIGNATURE + struct.pack(">BBH", _VERSION_2_PROXY, _TCP_OVER[target.version], len(body)) + body
