"""Try a new signing chain before anybody depends on it: a handshake in memory, as two agents would do it.

The profile says what a certificate should look like; whether a whole chain is
good, also one that somebody else's PKI signed, only a verifier can say.  So an
SVID is signed that nobody gets, and OpenSSL judges it by the letter of RFC 5280
(``VERIFY_X509_STRICT``), in both directions, with exactly the contexts that
agents use.  The dates are the caller's: they were compared with ``at``.
"""

import ssl
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509

from ca.authority import profile
from ca.authority.errors import AuthorityError
from ca.csr import new_key
from ca.spiffe import SpiffeId
from ca.svid import SvidError, check_dates, verify_chain
from ca.tls import KeyAndChain, check_time_ourselves, strict_context

_ALPN: Final = "ringfence-rehearsal"
_LIFETIME: Final = timedelta(minutes=1)


def rehearse(
    *,
    issuer: profile.Issuer,
    upstream: Sequence[x509.Certificate],
    root: x509.Certificate,
    trust_domain: str,
    at: datetime,
) -> None:
    """Sign an SVID and let both ends of a TLS connection verify it against ``root``.

    ``upstream`` are the certificates between ``issuer`` and ``root``, lowest first.

    Raises:
        AuthorityError: no agent would accept what this chain signs; the text says why.
    """
    at = at.replace(microsecond=0)
    identity = SpiffeId.authority(trust_domain)
    key = new_key()
    try:
        for certificate in (issuer.certificate, *upstream, root):
            check_dates(certificate, at=at)
        leaf = profile.build_svid(
            identity=identity,
            public_key=key.public_key(),
            issuer=issuer,
            at=at,
            not_after=at + _LIFETIME,
            serial=x509.random_serial_number(),
        )
        public_key_der = profile.public_bytes(key.public_key())
        profile.require_svid(leaf, identity=identity, public_key_der=public_key_der, issuer=issuer.certificate)
        verify_chain([leaf, issuer.certificate, *upstream, root], trust_domain=trust_domain)
        own = KeyAndChain(key=key, chain=(leaf, issuer.certificate, *upstream))
        contexts = [strict_context(server_side=side, roots=[root], alpn=_ALPN, own=own) for side in (False, True)]
        for context in contexts:
            check_time_ourselves(context)
        _shake_hands(*contexts)
    except ssl.SSLCertVerificationError as exc:
        raise AuthorityError(f"no agent would accept what this chain signs: {exc.verify_message}") from exc
    except (SvidError, profile.ProfileError, ssl.SSLError) as exc:
        raise AuthorityError(f"no agent would accept what this chain signs: {exc}") from exc


def _shake_hands(client_context: ssl.SSLContext, server_context: ssl.SSLContext) -> None:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    pending = [client, server]
    while pending:
        for end in list(pending):
            try:
                end.do_handshake()
                pending.remove(end)
            except ssl.SSLWantReadError:
                continue
