"""From a certificate signing request to an SVID that has been checked.

A request proves one thing, that the asker holds the key; everything else in it
is ignored by being refused.  Nothing is copied from it but the public key.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtensionOID

from ca.authority import profile
from ca.authority.errors import Refusal
from ca.authority.hierarchy import Hierarchy
from ca.messages import RefusalCode
from ca.spiffe import SpiffeId

_EXTENSION_REQUEST: Final = x509.ObjectIdentifier("1.2.840.113549.1.9.14")  # RFC 2985 5.4.2
_CURVES: Final = (ec.SECP256R1, ec.SECP384R1)
_HASHES: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


@dataclass(frozen=True, slots=True, kw_only=True)
class Svid:
    """A finished certificate; ``chain_der`` is the leaf and the intermediate, without the root."""

    identity: SpiffeId
    certificate: x509.Certificate
    chain_der: tuple[bytes, ...]
    issuer_key_id: str


class Signer:
    """Signs with one hierarchy at a time; thread-safe: a call takes the hierarchy once and goes on with it."""

    def __init__(self, *, hierarchy: Hierarchy, ttl: timedelta) -> None:
        self._hierarchy = hierarchy
        self._ttl = ttl

    def replace(self, hierarchy: Hierarchy) -> None:
        """Sign with another hierarchy from now on; what is being signed is finished with the one before."""
        self._hierarchy = hierarchy

    @property
    def hierarchy(self) -> Hierarchy:
        """What signs now; whoever needs several things of it takes it once."""
        return self._hierarchy

    @property
    def roots(self) -> tuple[x509.Certificate, ...]:
        """The trust bundle."""
        return self._hierarchy.roots

    @property
    def roots_der(self) -> tuple[bytes, ...]:
        """The trust bundle as it goes over the wire."""
        return self._hierarchy.roots_der

    @property
    def bundle_sequence(self) -> int:
        """Grows with every change of the trust bundle."""
        return self._hierarchy.bundle_sequence

    def sign(self, identity: SpiffeId, public_key: profile.PublicKey, *, at: datetime) -> Svid:
        """Sign, and judge the result against its profile before anybody gets it.

        Raises:
            Refusal: the intermediate has no life left.
            profile.ProfileError: the result breaks its profile (a bug: nothing is handed out).
        """
        hierarchy = self._hierarchy
        issuer = hierarchy.issuer
        # RFC 5280 4.1.2.5.2: times have whole seconds; cut here, so that the check below is exact.
        at = at.replace(microsecond=0)
        try:
            not_after = profile.svid_not_after(at=at, ttl=self._ttl, issuer_not_after=hierarchy.issuer_not_after)
        except profile.ProfileError as exc:
            raise Refusal(RefusalCode.UNAVAILABLE, str(exc)) from exc
        certificate = profile.build_svid(
            identity=identity,
            public_key=public_key,
            issuer=issuer,
            at=at,
            not_after=not_after,
            serial=x509.random_serial_number(),
        )
        profile.require_svid(
            certificate,
            identity=identity,
            public_key_der=profile.public_bytes(public_key),
            issuer=issuer.certificate,
        )
        leaf_der = certificate.public_bytes(serialization.Encoding.DER)
        return Svid(
            identity=identity,
            certificate=certificate,
            chain_der=(leaf_der, *hierarchy.chain_der),
            issuer_key_id=hierarchy.issuer_key_id,
        )


def requested_key(csr_der: bytes, identity: SpiffeId) -> profile.PublicKey:
    """Check a PKCS #10 request for ``identity`` and return the key to certify.

    Raises:
        Refusal: ``bad_csr``, with the rule that it breaks.
    """
    try:
        csr = x509.load_der_x509_csr(csr_der)
        extensions = list(csr.extensions)
        attributes = list(csr.attributes)
        key = csr.public_key()
        signed_with = csr.signature_hash_algorithm
        proven = csr.is_signature_valid
    except Exception as exc:
        # The parser's exceptions are an open set (InvalidVersion is only an Exception), and their texts may
        # quote the request: none of them gets out.
        raise _bad(
            "it can not be parsed (RFC 2986 4), or its key or signature is of a kind that is not supported"
        ) from exc
    if any(attribute.oid != _EXTENSION_REQUEST for attribute in attributes):
        raise _bad("it has attributes other than extensionRequest (RFC 2986 4.1)")
    if len(attributes) != 1 or [extension.oid for extension in extensions] != [ExtensionOID.SUBJECT_ALTERNATIVE_NAME]:
        raise _bad(
            "it must ask for exactly one extension, subjectAltName (X509-SVID 2): the authority decides all others"
        )
    if csr.subject.rdns:
        raise _bad("its subject must be empty: an SVID is named by its URI SAN only (X509-SVID 2)")
    names = list(extensions[0].value) if isinstance(extensions[0].value, x509.SubjectAlternativeName) else []
    if names != [x509.UniformResourceIdentifier(str(identity))]:
        raise _bad(f"its subjectAltName must be the one URI that the request is for, {identity} (X509-SVID 2)")
    permitted = _permitted(key)
    if signed_with is not None and not isinstance(signed_with, _HASHES):
        raise _bad(f"it is signed with {signed_with.name}: SHA-256, SHA-384 or SHA-512 is needed (RFC 5758 3.2)")
    if not proven:
        raise _bad("its signature does not fit its public key: no proof of possession (RFC 2986 3)")
    return permitted


def _permitted(key: object) -> profile.PublicKey:
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, _CURVES):
        return key
    raise _bad("its key must be P-256, P-384 (RFC 5480 2.1.1.1) or Ed25519 (RFC 8410 3)")


def _bad(rule: str) -> Refusal:
    return Refusal(RefusalCode.BAD_CSR, f"the certificate signing request is refused: {rule}")
