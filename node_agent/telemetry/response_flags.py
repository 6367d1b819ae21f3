"""Response flags: the short word for a close reason that dashboards group by.

The words are ztunnel's where it has one (``-``, ``DENY``, ``CONNECT``,
``TLS_FAILURE``, ``IDENTITY_ERROR``); the others are ours.  One literal table:
a close reason that is missing here fails the tests.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from node_agent.errors import CloseReason


class ResponseFlag(StrEnum):
    """Closed set, documented in docs/access-records.md."""

    NONE = "-"
    DENY = "DENY"
    CONNECT = "CONNECT"
    IDENTITY_ERROR = "IDENTITY_ERROR"
    TLS_FAILURE = "TLS_FAILURE"
    TUNNEL_FAILURE = "TUNNEL_FAILURE"
    RESET = "RESET"
    TIMEOUT = "TIMEOUT"
    CUT = "CUT"
    OVERLOAD = "OVERLOAD"
    FAULT = "FAULT"
    INTERNAL_ERROR = "INTERNAL_ERROR"


RESPONSE_FLAGS: Final[Mapping[CloseReason, ResponseFlag]] = MappingProxyType(
    {
        CloseReason.OK: ResponseFlag.NONE,
        CloseReason.NO_SERVICE_ENDPOINTS: ResponseFlag.CONNECT,
        CloseReason.UNKNOWN_DESTINATION: ResponseFlag.CONNECT,
        CloseReason.DESTINATION_NOT_ALLOWED: ResponseFlag.DENY,
        CloseReason.PLAINTEXT_REFUSED: ResponseFlag.DENY,
        CloseReason.POLICY_DENIED: ResponseFlag.DENY,
        CloseReason.IDENTITY_UNAVAILABLE: ResponseFlag.IDENTITY_ERROR,
        CloseReason.LIMIT_EXCEEDED: ResponseFlag.OVERLOAD,
        CloseReason.RATE_LIMITED: ResponseFlag.OVERLOAD,
        CloseReason.FAULT_INJECTED: ResponseFlag.FAULT,
        CloseReason.CONNECT_REFUSED: ResponseFlag.CONNECT,
        CloseReason.CONNECT_TIMEOUT: ResponseFlag.CONNECT,
        CloseReason.CONNECT_UNREACHABLE: ResponseFlag.CONNECT,
        CloseReason.CONNECT_FAILED: ResponseFlag.CONNECT,
        CloseReason.HANDSHAKE_TIMEOUT: ResponseFlag.TLS_FAILURE,
        CloseReason.HANDSHAKE_FAILED: ResponseFlag.TLS_FAILURE,
        CloseReason.NOT_TLS: ResponseFlag.TLS_FAILURE,
        CloseReason.TLS_VERSION: ResponseFlag.TLS_FAILURE,
        CloseReason.CERTIFICATE_MISSING: ResponseFlag.TLS_FAILURE,
        CloseReason.CERTIFICATE_EXPIRED: ResponseFlag.TLS_FAILURE,
        CloseReason.CERTIFICATE_UNTRUSTED: ResponseFlag.TLS_FAILURE,
        CloseReason.CERTIFICATE_INVALID: ResponseFlag.TLS_FAILURE,
        CloseReason.IDENTITY_MISMATCH: ResponseFlag.IDENTITY_ERROR,
        CloseReason.SOURCE_MISMATCH: ResponseFlag.IDENTITY_ERROR,
        CloseReason.IDENTITY_REVOKED: ResponseFlag.IDENTITY_ERROR,
        CloseReason.TRUST_REMOVED: ResponseFlag.IDENTITY_ERROR,
        CloseReason.PROTOCOL_ERROR: ResponseFlag.TUNNEL_FAILURE,
        CloseReason.OPEN_TIMEOUT: ResponseFlag.TUNNEL_FAILURE,
        CloseReason.VERDICT_TIMEOUT: ResponseFlag.TUNNEL_FAILURE,
        CloseReason.PEER_UNAVAILABLE: ResponseFlag.CONNECT,
        CloseReason.DOWNSTREAM_RESET: ResponseFlag.RESET,
        CloseReason.UPSTREAM_RESET: ResponseFlag.RESET,
        CloseReason.TUNNEL_LOST: ResponseFlag.TUNNEL_FAILURE,
        CloseReason.IDLE_TIMEOUT: ResponseFlag.TIMEOUT,
        CloseReason.LIFETIME_EXCEEDED: ResponseFlag.TIMEOUT,
        CloseReason.STALLED_WRITE: ResponseFlag.TIMEOUT,
        CloseReason.DRAINED: ResponseFlag.CUT,
        CloseReason.WORKLOAD_REMOVED: ResponseFlag.CUT,
        CloseReason.OVERLOADED: ResponseFlag.OVERLOAD,
        CloseReason.INTERNAL_ERROR: ResponseFlag.INTERNAL_ERROR,
    }
)
