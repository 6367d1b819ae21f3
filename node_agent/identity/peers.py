"""Who is at the other end of a tunnel, after its handshake.

OpenSSL has verified the peer's chain up to a root of our bundle; SPIFFE's own
rules, and the dates, are checked here, on exactly the chain that OpenSSL
verified.

Why the dates are checked here: OpenSSL knows no tolerance, and nodes' clocks
differ.  So the contexts are told not to look at dates
(X509_V_FLAG_NO_CHECK_TIME), and ``peer_identity`` looks at those of the whole
chain, with ``ca.svid.CLOCK_SKEW``.  A tunnel is therefore worth nothing before
``peer_identity`` has returned; it also checks what only a look at the signing
certificates can tell.

An answer is kept for the chain it was computed from, so that the hundredth
connection of a peer costs a look-up; the dates are compared every time.
"""

import _ssl
import ssl
import sys
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

from ca.spiffe import SpiffeId
from ca.svid import CLOCK_SKEW, SvidDateError, SvidError, check_dates, load_certificate, verify_chain
from node_agent.errors import CloseReason, ConnectionFailure

_NO_CHECK_TIME: Final = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, openssl/x509_vfy.h
_REMEMBERED_CHAINS: Final = 1024  # ~4 KB each


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerCertificate:
    """A peer that was verified: who it is, and until when its chain says so (aware UTC)."""

    identity: SpiffeId
    serial: int
    not_after: datetime


def check_time_ourselves(context: ssl.SSLContext) -> None:
    """Leave the dates of the peer's chain to ``peer_identity``."""
    context.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME)


def peer_identity(tls: ssl.SSLObject | ssl.SSLSocket, *, trust_domain: str, at: datetime) -> PeerCertificate:
    """Return who the peer of a finished handshake is; call it before a byte is exchanged.

    Args:
        tls: a connection made from the contexts of ``Credentials``.
        trust_domain: the one that the context's roots belong to.
        at: now, aware UTC.

    Raises:
        ConnectionFailure: CERTIFICATE_MISSING, CERTIFICATE_EXPIRED (which also
            covers "not yet valid") or CERTIFICATE_INVALID.
    """
    chain = _verified_chain(tls)
    if not chain:
        raise ConnectionFailure(CloseReason.CERTIFICATE_MISSING, "the peer has no certificate")
    found = _judge(chain, trust_domain)
    if isinstance(found, str):
        raise ConnectionFailure(CloseReason.CERTIFICATE_INVALID, found)
    if not found.not_before - CLOCK_SKEW <= at <= found.not_after + CLOCK_SKEW:
        raise ConnectionFailure(CloseReason.CERTIFICATE_EXPIRED, _date_problem(chain, at))
    return found.peer


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    peer: PeerCertificate
    not_before: datetime  # of the chain: the latest
    not_after: datetime  # of the chain: the earliest


@lru_cache(maxsize=_REMEMBERED_CHAINS)
def _judge(chain: tuple[bytes, ...], trust_domain: str) -> _Judged | str:
    """Apply every rule but the dates; the text says which one is broken."""
    try:
        certificates = [load_certificate(der) for der in chain]
        not_before = max(certificate.not_valid_before_utc for certificate in certificates)
        not_after = min(certificate.not_valid_after_utc for certificate in certificates)
        identity = verify_chain(certificates, trust_domain=trust_domain)
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


def _verified_chain(tls: ssl.SSLObject | ssl.SSLSocket) -> tuple[bytes, ...]:
    """Return the chain that OpenSSL verified, leaf first and root last, in DER.

    Python 3.13 made the call public; 3.10 to 3.12 have it on the object inside.
    """
    if sys.version_info >= (3, 13):
        return tuple(tls.get_verified_chain())
    inside: Any = getattr(tls, "_sslobj", None)
    if inside is None:
        raise ConnectionFailure(CloseReason.HANDSHAKE_FAILED, "not connected")
    return tuple(certificate.public_bytes(_ssl.ENCODING_DER) for certificate in inside.get_verified_chain() or ())
