"""Who is at the other end of a tunnel, after its handshake.

OpenSSL has verified the peer's chain up to a root of some bundle that we trust;
SPIFFE's own rules, whose root it is, and the dates are checked here, on exactly
the chain that OpenSSL verified.

Why the dates are checked here: OpenSSL knows no tolerance, and nodes' clocks
differ.  So the contexts are told not to look at dates
(X509_V_FLAG_NO_CHECK_TIME), and ``peer_identity`` looks at those of the whole
chain, with ``ca.svid.CLOCK_SKEW``.  A tunnel is therefore worth nothing before
``peer_identity`` has returned; it also checks what only a look at the signing
certificates can tell.

An answer is kept for the chain it was computed from, so that the hundredth
connection of a peer costs a look-up; the dates are compared every time.
"""

import ssl
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final

from ca.anchors import UntrustedDomainError, require_own_bundle
from ca.spiffe import SpiffeId
from ca.svid import CLOCK_SKEW, SvidDateError, SvidError, check_dates, identity_of, load_certificate, verify_chain
from ca.tls import verified_chain
from node_agent.errors import CloseReason, ConnectionFailure

_REMEMBERED_CHAINS: Final = 1024  # ~4 KB each


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerCertificate:
    """A peer that was verified: who it is, and until when its chain says so (aware UTC)."""

    identity: SpiffeId
    serial: int
    not_after: datetime


def peer_identity(
    tls: ssl.SSLObject | ssl.SSLSocket, *, bundles: Mapping[str, Collection[bytes]], at: datetime
) -> PeerCertificate:
    """Return who the peer of a finished handshake is; call it before a byte is exchanged.

    Args:
        tls: a connection made from the contexts of ``Credentials``.
        bundles: the roots of each trust domain that is trusted, in DER.
        at: now, aware UTC.

    Raises:
        ConnectionFailure: CERTIFICATE_MISSING, CERTIFICATE_EXPIRED (which also
            covers "not yet valid"), CERTIFICATE_INVALID, or TRUST_REMOVED when
            the peer's trust domain is not federated (any more).
    """
    try:
        chain = verified_chain(tls)
    except ValueError as error:
        raise ConnectionFailure(CloseReason.HANDSHAKE_FAILED, "not connected") from error
    if not chain:
        raise ConnectionFailure(CloseReason.CERTIFICATE_MISSING, "the peer has no certificate")
    found = _judge(chain)
    if isinstance(found, str):
        raise ConnectionFailure(CloseReason.CERTIFICATE_INVALID, found)
    try:
        # Every time: which roots are whose may have changed since the chain was judged.
        require_own_bundle(found.peer.identity, chain[-1], bundles=bundles)
    except UntrustedDomainError as error:
        raise ConnectionFailure(CloseReason.TRUST_REMOVED, str(error)) from error
    except SvidError as error:
        raise ConnectionFailure(CloseReason.CERTIFICATE_INVALID, str(error)) from error
    if not found.not_before - CLOCK_SKEW <= at <= found.not_after + CLOCK_SKEW:
        raise ConnectionFailure(CloseReason.CERTIFICATE_EXPIRED, _date_problem(chain, at))
    return found.peer


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    peer: PeerCertificate
    not_before: datetime  # of the chain: the latest
    not_after: datetime  # of the chain: the earliest


@lru_cache(maxsize=_REMEMBERED_CHAINS)
def _judge(chain: tuple[bytes, ...]) -> _Judged | str:
    """Apply every rule but the dates and whose the root is; the text says which one is broken."""
    try:
        certificates = [load_certificate(der) for der in chain]
        not_before = max(certificate.not_valid_before_utc for certificate in certificates)
        not_after = min(certificate.not_valid_after_utc for certificate in certificates)
        identity = verify_chain(certificates, trust_domain=identity_of(certificates[0]).trust_domain)
    except SvidError as error:
        return str(error)
    except ValueError as error:
        return f"malformed certificate: {error}"
    peer = PeerCertificate(identity=identity, serial=certificates[0].serial_number, not_after=not_after)
    return _Judged(peer=peer, not_before=not_before, not_after=not_after)


def _date_problem(chain: tuple[bytes, ...], at: datetime) -> str:
    for der in chain:
        try:
            check_dates(load_certificate(der), at=at)
        except SvidDateError as error:
            return str(error)
    return "no moment is within the dates of every certificate of the chain"
