"""One identity's SVID, ready for use: the two TLS contexts that present it.

A context takes OpenSSL 3.0 about 2 ms and 31 KB, and a node with 200 identities
has two for each: they are made when they are first used, by a connection of
that identity, and never changed after.  A renewed SVID is a new
``Credentials`` with a higher ``ring`` (a generation number that only grows); connections made with the old one go on
with the old one.
"""

import itertools
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec

from ca.errors import CaProtocolError
from ca.spiffe import SpiffeId
from ca.svid import SvidError, check_dates, verify_chain
from ca.tls import KeyAndChain, check_time_ourselves, strict_context
from node_agent.frames import ALPN
from node_agent.stream_frames import SHARED_ALPN


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Credentials:
    """What it takes to be ``identity`` on a connection, until ``not_after`` (aware UTC).

    ``own`` is what the contexts are made of: contexts do not travel to another process.  ``roots`` is what they
    judge peers by.  ``shares``: whether we let a tunnel that we accept carry many connections.
    """

    identity: SpiffeId
    serial: int
    not_before: datetime
    not_after: datetime
    own: KeyAndChain
    roots: tuple[x509.Certificate, ...]
    ring: int
    shares: bool = True
    _made: dict[bool, ssl.SSLContext] = field(init=False, repr=False, default_factory=dict)

    @property
    def client_context(self) -> ssl.SSLContext:
        """For connections that we open; the same one at every call."""
        return self._context(server_side=False)

    @property
    def server_context(self) -> ssl.SSLContext:
        """For connections that we accept; the same one at every call."""
        return self._context(server_side=True)

    def _context(self, *, server_side: bool) -> ssl.SSLContext:
        context = self._made.get(server_side)
        if context is None:
            context = strict_context(server_side=server_side, roots=self.roots, alpn=ALPN, own=self.own)
            if self.shares or not server_side:
                context.set_alpn_protocols([SHARED_ALPN, ALPN])
            check_time_ourselves(context)
            self._made[server_side] = context
        return context


def make_credentials(
    *,
    identity: SpiffeId,
    own: KeyAndChain,
    roots: Sequence[x509.Certificate],
    at: datetime,
    ring: int,
    issued_under: Sequence[x509.Certificate] | None = None,
    shares: bool = True,
) -> Credentials:
    """Check a chain that the CA issued.

    Args:
        roots: what peers are judged by.
        issued_under: the roots that the chain has to lead to, if they are others.

    Raises:
        CaProtocolError: the chain is not what was asked for, or does not lead to a root.
    """
    require_issued_to(identity=identity, own=own, roots=issued_under or roots, at=at)
    return assemble(identity=identity, own=own, roots=roots, ring=ring, shares=shares)


def assemble(
    *, identity: SpiffeId, own: KeyAndChain, roots: Sequence[x509.Certificate], ring: int, shares: bool = True
) -> Credentials:
    """Credentials of a chain that was checked before, here or in the process that it comes from."""
    leaf = own.chain[0]
    return Credentials(
        identity=identity,
        serial=leaf.serial_number,
        not_before=leaf.not_valid_before_utc,
        # An SVID is worth no more than the certificates that vouch for it.
        not_after=min(certificate.not_valid_after_utc for certificate in own.chain),
        own=own,
        roots=tuple(roots),
        ring=ring,
        shares=shares,
    )


def with_roots(credentials: Credentials, *, roots: Sequence[x509.Certificate], ring: int) -> Credentials:
    """The same SVID with contexts that judge peers by other roots; a context trusts the roots it was made with."""
    return replace(credentials, roots=tuple(roots), ring=ring)


def leads_to(own: KeyAndChain, roots: Sequence[x509.Certificate]) -> bool:
    """Whether a chain ends at one of ``roots``."""
    try:
        _root_of(own.chain, roots)
    except SvidError:
        return False
    return True


def require_issued_to(*, identity: SpiffeId, own: KeyAndChain, roots: Sequence[x509.Certificate], at: datetime) -> None:
    """Check what the CA sent as a peer would: the key is ours, the name is right, the signatures lead to a root.

    Raises:
        CaProtocolError: it is not so.
    """
    public_key = own.chain[0].public_key() if own.chain else None
    if not isinstance(public_key, ec.EllipticCurvePublicKey) or public_key != own.key.public_key():
        raise CaProtocolError(f"the CA issued a certificate for {identity} with a key that is not ours")
    try:
        root = _root_of(own.chain, roots)
        issued_to = verify_chain([*own.chain, root], trust_domain=identity.trust_domain)
        for certificate in (*own.chain, root):
            check_dates(certificate, at=at)
    except SvidError as error:
        raise CaProtocolError(f"the CA issued a bad certificate for {identity}: {error}") from error
    if issued_to != identity:
        raise CaProtocolError(f"the CA issued a certificate for {issued_to} instead of {identity}")


def _root_of(chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate]) -> x509.Certificate:
    for certificate, issuer in itertools.pairwise(chain):
        if not _is_signed_by(certificate, issuer):
            raise SvidError("the chain is not in order: leaf first, each signed by the next", "RFC 8446 section 4.4.2")
    for root in roots:
        if _is_signed_by(chain[-1], root):
            return root
    raise SvidError("the chain leads to no root of the trust bundle", "RFC 5280 section 6.1")


def _is_signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
