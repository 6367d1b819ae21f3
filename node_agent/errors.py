"""What can go wrong with a connection, and the closed set of reasons.

Errors have three scopes (docs/architecture.md, "Errors"):

* *connection*: a ``ConnectionFailure`` with a ``CloseReason``; the access
  record context manager is the only place that absorbs it.
* *component* (CA unreachable, registry gone): the component keeps its last
  good value, backs off and shows it in readiness.
* *agent* (bad configuration, unsupported kernel): ``AgentError`` leaves
  ``trio.run``; the process prints it and exits.
"""

from enum import StrEnum


class CloseReason(StrEnum):
    """Why a connection ended: a field of the access record, documented in docs/access-records.md."""

    OK = "ok"
    # Refused before anything was connected.
    NO_SERVICE_ENDPOINTS = "no_endpoints"
    UNKNOWN_DESTINATION = "unknown_destination"
    DESTINATION_NOT_ALLOWED = "destination_not_allowed"
    PLAINTEXT_REFUSED = "plaintext_refused"
    POLICY_DENIED = "policy_denied"
    IDENTITY_UNAVAILABLE = "identity_unavailable"
    LIMIT_EXCEEDED = "limit_exceeded"
    RATE_LIMITED = "rate_limited"
    FAULT_INJECTED = "fault_injected"  # or after some bytes
    # The way to the other side.
    CONNECT_REFUSED = "connect_refused"
    CONNECT_TIMEOUT = "connect_timeout"
    CONNECT_UNREACHABLE = "connect_unreachable"
    CONNECT_FAILED = "connect_failed"
    HANDSHAKE_TIMEOUT = "handshake_timeout"
    HANDSHAKE_FAILED = "handshake_failed"
    NOT_TLS = "not_tls"
    TLS_VERSION = "tls_version"
    CERTIFICATE_MISSING = "certificate_missing"
    CERTIFICATE_EXPIRED = "certificate_expired"
    CERTIFICATE_UNTRUSTED = "certificate_untrusted"
    CERTIFICATE_INVALID = "certificate_invalid"
    IDENTITY_MISMATCH = "identity_mismatch"
    SOURCE_MISMATCH = "source_mismatch"
    IDENTITY_REVOKED = "identity_revoked"
    TRUST_REMOVED = "trust_removed"
    PROTOCOL_ERROR = "protocol_error"
    OPEN_TIMEOUT = "open_timeout"
    VERDICT_TIMEOUT = "verdict_timeout"
    PEER_UNAVAILABLE = "peer_unavailable"
    # After the bytes began to move.
    DOWNSTREAM_RESET = "downstream_reset"
    UPSTREAM_RESET = "upstream_reset"
    TUNNEL_LOST = "tunnel_lost"
    IDLE_TIMEOUT = "idle_timeout"
    LIFETIME_EXCEEDED = "lifetime_exceeded"
    STALLED_WRITE = "stalled_write"
    DRAINED = "drained"
    WORKLOAD_REMOVED = "workload_removed"
    OVERLOADED = "overloaded"
    INTERNAL_ERROR = "internal_error"


class AgentError(Exception):
    """The agent can not run: says what was wrong, where and what to do."""


class ConfigError(AgentError):
    """A configuration file is wrong; the text names file, key and remedy."""


class ConnectionFailure(Exception):
    """This one connection ends, for ``reason``; ``detail`` is for people."""

    def __init__(self, reason: CloseReason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason = reason
        self.detail = detail


class PolicyDenied(ConnectionFailure):
    """An AuthorizationPolicy says no: ``policy`` is its namespace/name, None if no ALLOW policy matched."""

    def __init__(self, detail: str, *, policy: str | None) -> None:
        super().__init__(CloseReason.POLICY_DENIED, detail)
        self.policy = policy


class HandshakeBrokenOff(ConnectionFailure):
    """The peer left in the middle of the TLS handshake, and has shown nothing that is wrong: it may be ending."""

    def __init__(self, detail: str) -> None:
        super().__init__(CloseReason.HANDSHAKE_FAILED, detail)


class RemoteProtocolError(ConnectionFailure):
    """The peer broke the tunnel protocol: close the tunnel (as in h11)."""

    def __init__(self, detail: str) -> None:
        super().__init__(CloseReason.PROTOCOL_ERROR, detail)


class LocalProtocolError(Exception):
    """We broke the tunnel protocol: a bug of ours."""
