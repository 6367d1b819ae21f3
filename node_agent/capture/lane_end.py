"""A connection on the same-node lane, as the kernel tells of it; and what its numbers mean.

Sans-I/O.  TCP counts SYN and FIN among the bytes (RFC 9293, 3.4): what it says
was acknowledged has one more for the SYN of a connection that was established,
and one for the FIN if that was acknowledged; what it received one for the
server's FIN.
"""

import errno
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, NamedTuple

from bpf.abi import abi
from node_agent.model import EndpointAddress, OriginalDestination, PeerAddress

_CONSTANTS: Final = abi().constants
FIN_CAME: Final = _CONSTANTS["LANE_FIN_CAME"]
ENDED_WELL: Final = _CONSTANTS["LANE_SYN_SENT"] | _CONSTANTS["LANE_ESTABLISHED"] | _CONSTANTS["LANE_FIN_ACKED"]
"""All flags of a connection that both ends were content with, but for FIN_CAME, which may be or not."""


class LaneEndpoint(NamedTuple):
    """Where a lane leads; ``grant`` is the agent's number for it, ``weight`` its share of the connections."""

    address: EndpointAddress
    grant: int
    weight: int


class RawEnd(NamedTuple):
    """``struct lane_end`` as it stands (bpf/maps.h)."""

    cookie: int
    grant: int
    netns_cookie: int
    began_ns: int
    established_ns: int
    ended_ns: int
    acked_bytes: int
    received_bytes: int
    original_ip_be: bytes
    original_port_be: int
    flags: int
    client_ip_be: bytes
    server_ip_be: bytes
    client_port: int
    server_port: int
    error: int
    reserved: int


class LaneFate(Enum):
    """How a connection on the lane ended, as the client's TCP saw it."""

    COMPLETE = auto()
    CLIENT_RESET = auto()
    SERVER_RESET = auto()
    REFUSED = auto()  # by the server
    NO_ANSWER = auto()
    GRANT_GONE = auto()  # before the SYN was sent
    CUT = auto()  # by the agent


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneConnection:
    """One that is open.  Times are monotonic seconds, ``established_at`` None before."""

    cookie: int
    grant: int
    netns_cookie: int
    original: OriginalDestination
    client: PeerAddress
    server: EndpointAddress
    began_at: float
    established_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneEnd:
    """The end of one; ``sent_bytes`` from the server to the client, ``received_bytes`` the other way, as in records."""

    connection: LaneConnection
    ended_at: float
    sent_bytes: int
    received_bytes: int
    fate: LaneFate


def count(
    *, acked_bytes: int, received_bytes: int, is_established: bool, is_fin_acked: bool, has_fin_come: bool
) -> tuple[int, int]:
    """The bytes that the client has sent, and those that it got, of what its TCP has counted."""
    sent = acked_bytes - is_established - is_fin_acked if acked_bytes else 0
    return max(0, sent), max(0, received_bytes - has_fin_come)


def fate(*, error: int, is_established: bool, is_fin_acked: bool, is_grant_gone: bool) -> LaneFate:
    """``error`` is the socket's at its end; 0: nobody else ended it."""
    if error == errno.ECONNABORTED:
        return LaneFate.CUT
    if is_grant_gone:
        return LaneFate.GRANT_GONE
    if error in (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH):
        return LaneFate.NO_ANSWER
    if error:
        return LaneFate.SERVER_RESET if is_established else LaneFate.REFUSED
    return LaneFate.COMPLETE if is_fin_acked else LaneFate.CLIENT_RESET
