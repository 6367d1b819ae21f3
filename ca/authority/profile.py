"""What each certificate of the authority looks like: an executable specification.

Sans-I/O: no clock, no randomness.  Callers pass ``at`` and the serial number.

    root          self-signed, cA, pathlen 1, path-less SPIFFE ID        10 years
    intermediate  signed by a root, cA, pathlen 0, path-less SPIFFE ID,  1 year
                  URI names only in the trust domain
    SVID          signed by an intermediate, one SPIFFE ID, no subject   1 hour

Every certificate is built by a ``build_*`` function and then judged by the
``require_*`` function next to it, which reads the finished certificate and
knows nothing of how it was built.  Sources: RFC 5280, SPIFFE X509-SVID.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, TypeVar, cast

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ca.spiffe import SpiffeId
from ca.svid import SvidError, identity_of

_ExtensionT = TypeVar("_ExtensionT", bound=x509.ExtensionType)
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
Extension = tuple[x509.ExtensionType, bool]  # and whether it is critical

ROOT_LIFETIME: Final = timedelta(days=3650)
INTERMEDIATE_LIFETIME: Final = timedelta(days=365)
CLOCK_SKEW: Final = timedelta(seconds=60)  # how far NotBefore lies back: the skew that verifiers are promised
MIN_LIFETIME: Final = timedelta(seconds=30)  # less than that, where more was wanted, is not worth a handshake
_MAX_SERIAL_BITS: Final = 159  # RFC 5280 4.1.2.2: at most 20 octets, positive
_SERVER_AND_CLIENT: Final = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


class ProfileError(Exception):
    """A finished certificate breaks its profile: a bug or a broken key, never sent to anybody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """A certificate that may sign, with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    # What all leaves of this issuer have in common, put together once.
    leaf: x509.CertificateBuilder = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if public_bytes(self.key.public_key()) != public_bytes(self.certificate.public_key()):
            raise ProfileError("the signing key does not belong to the signing certificate")
        object.__setattr__(self, "leaf", _leaf_builder(self.certificate))


def svid_not_after(*, at: datetime, ttl: timedelta, issuer_not_after: datetime) -> datetime:
    """When an SVID ends: after its TTL, but never after its issuer.

    RFC 5280 6.1 judges every certificate of the path at the same moment, so an
    SVID that outlives its issuer would only look valid.

    Raises:
        ProfileError: the issuer has no useful life left.
    """
    not_after = min(at + ttl, issuer_not_after)
    if not_after - at < min(ttl, MIN_LIFETIME):
        raise ProfileError(f"the signing certificate ends at {issuer_not_after.isoformat()}: renew it")
    return not_after


def build_root(
    *, trust_domain: str, key: ec.EllipticCurvePrivateKey, at: datetime, lifetime: timedelta, serial: int
) -> x509.Certificate:
    """Sign a root with its own key; ``at`` is aware UTC."""
    name = signing_name("root", key.public_key())
    builder = x509.CertificateBuilder().public_key(key.public_key())
    for extension, critical in _signing_extensions(trust_domain, key.public_key(), path_length=1):
        builder = builder.add_extension(extension, critical=critical)
    authority_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    builder = builder.add_extension(authority_key, critical=False)
    builder = builder.subject_name(name).issuer_name(name).serial_number(serial)
    return _valid(builder, at - CLOCK_SKEW, at + lifetime).sign(key, hashes.SHA256())


def build_intermediate(
    *, trust_domain: str, public_key: PublicKey, issuer: Issuer, at: datetime, lifetime: timedelta, serial: int
) -> x509.Certificate:
    """Sign an intermediate that can name only members of ``trust_domain``."""
    builder = x509.CertificateBuilder().public_key(public_key)
    for extension, critical in intermediate_extensions(trust_domain, public_key):
        builder = builder.add_extension(extension, critical=critical)
    builder = builder.add_extension(_issued_by(issuer.certificate), critical=False)
    builder = builder.subject_name(signing_name("intermediate", public_key)).issuer_name(issuer.certificate.subject)
    not_after = min(at + lifetime, issuer.certificate.not_valid_after_utc)
    return _valid(builder.serial_number(serial), at - CLOCK_SKEW, not_after).sign(issuer.key, hashes.SHA256())


def intermediate_extensions(trust_domain: str, public_key: PublicKey) -> list[Extension]:
    """What an intermediate has, but for the authority key identifier; also what another PKI is asked for."""
    # RFC 5280 4.2.1.10: for a URI "the constraint applies to the host part of the name", which in a
    # SPIFFE ID is the trust domain; without a leading period it means exactly this host.
    permitted = [x509.UniformResourceIdentifier(trust_domain)]
    constraints = x509.NameConstraints(permitted_subtrees=permitted, excluded_subtrees=None)
    return [*_signing_extensions(trust_domain, public_key, path_length=0), (constraints, True)]


def build_svid(
    *, identity: SpiffeId, public_key: PublicKey, issuer: Issuer, at: datetime, not_after: datetime, serial: int
) -> x509.Certificate:
    """Sign a leaf for ``identity``; nothing in it comes from the requester but the public key."""
    # X509-SVID 2: an SVID has exactly one URI SAN.  RFC 5280 4.2.1.6: with an empty subject the
    # subjectAltName "MUST be marked as critical".
    builder = (
        issuer.leaf.public_key(public_key)
        .serial_number(serial)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))]), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )
    not_before = max(at - CLOCK_SKEW, issuer.certificate.not_valid_before_utc)
    return _valid(builder, not_before, not_after).sign(issuer.key, hashes.SHA256())


def _leaf_builder(issuer: x509.Certificate) -> x509.CertificateBuilder:
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(_SERVER_AND_CLIENT), critical=False)
    )
    return builder.add_extension(_issued_by(issuer), critical=False)


def require_root(certificate: x509.Certificate, *, trust_domain: str) -> None:
    """Raise ProfileError unless ``certificate`` is a root of ``trust_domain``."""
    _require_signing(certificate, certificate, trust_domain=trust_domain, path_length=1)
    _require(certificate.subject == certificate.issuer, "a root is its own issuer (RFC 5280 3.2)")


def require_intermediate(certificate: x509.Certificate, *, issuer: x509.Certificate, trust_domain: str) -> None:
    """Raise ProfileError unless ``certificate`` may sign SVIDs of ``trust_domain`` and nothing else."""
    _require_signing(certificate, issuer, trust_domain=trust_domain, path_length=0)
    require_constrained(certificate, trust_domain=trust_domain)


def require_constrained(certificate: x509.Certificate, *, trust_domain: str) -> None:
    """Raise ProfileError unless an intermediate, whoever signed it, can sign leaves of one trust domain only."""
    basic = _extension(certificate, x509.BasicConstraints)
    _require(
        basic.critical and basic.value.ca and basic.value.path_length == 0,
        "critical basicConstraints, cA, pathlen 0 (RFC 5280 4.2.1.9)",
    )
    usage = _extension(certificate, x509.KeyUsage)
    _require(usage.critical and usage.value.key_cert_sign, "critical key usage with keyCertSign (RFC 5280 4.2.1.3)")
    constraints = _extension(certificate, x509.NameConstraints)
    permitted = constraints.value.permitted_subtrees or []
    names = [name.value for name in permitted if isinstance(name, x509.UniformResourceIdentifier)]
    _require(
        constraints.critical and names == [trust_domain],
        f"an intermediate is constrained to URI names in {trust_domain} (RFC 5280 4.2.1.10)",
    )


def require_svid(
    certificate: x509.Certificate, *, identity: SpiffeId, public_key_der: bytes, issuer: x509.Certificate
) -> None:
    """Raise ProfileError unless ``certificate`` is the SVID that was to be made.

    The rules that every verifier applies are ``ca.svid``'s; what is added here
    is what only the issuer knows: for whom, for which key, from whom.
    """
    try:
        found = identity_of(certificate)
    except SvidError as exc:
        raise ProfileError(f"not an SVID: {exc}") from exc
    _require(found == identity, "the SVID names another identity")
    _require(public_bytes(certificate.public_key()) == public_key_der, "the SVID certifies another key")
    _require(not certificate.subject.rdns, "an SVID has an empty subject")
    usage = _extension(certificate, x509.KeyUsage)
    _require(usage.critical and usage.value == _key_usage(signs_certificates=False), "key usage: digitalSignature only")
    extended = _extension(certificate, x509.ExtendedKeyUsage).value
    _require(tuple(extended) == _SERVER_AND_CLIENT, "extended key usage: serverAuth and clientAuth (X509-SVID 4.4)")
    _require_link(certificate, issuer)


def public_bytes(key: object) -> bytes:
    """The SubjectPublicKeyInfo of a public key: how two keys are compared."""
    assert hasattr(key, "public_bytes")
    encoded: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return encoded


def key_id(certificate: x509.Certificate) -> str:
    """The subject key identifier in hex: the name of a signing key on disk and in the journal."""
    return _extension(certificate, x509.SubjectKeyIdentifier).value.digest.hex()


def _signing_extensions(trust_domain: str, public_key: PublicKey, *, path_length: int) -> list[Extension]:
    # X509-SVID 3.2 and 4.1: a signing certificate may have a SPIFFE ID, which "MUST NOT have a path".
    identity = SpiffeId(trust_domain, "")
    return [
        (x509.BasicConstraints(ca=True, path_length=path_length), True),
        (_key_usage(signs_certificates=True), True),
        (x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))]), False),
        (x509.SubjectKeyIdentifier.from_public_key(public_key), False),
    ]


def signing_name(kind: str, public_key: PublicKey) -> x509.Name:
    """The name of a root or an intermediate."""
    # Two generations must not share a name, or a verifier that looks issuers up by name tries the wrong
    # one first.  The trust domain does not fit: a common name has at most 64 characters (RFC 5280 A.1).
    generation = x509.SubjectKeyIdentifier.from_public_key(public_key).digest.hex()[:16]
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Ringfence"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"Ringfence {kind} {generation}"),
        ]
    )


def _valid(builder: x509.CertificateBuilder, not_before: datetime, not_after: datetime) -> x509.CertificateBuilder:
    return builder.not_valid_before(not_before).not_valid_after(not_after)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _issued_by(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = _extension(issuer, x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _require_signing(
    certificate: x509.Certificate, issuer: x509.Certificate, *, trust_domain: str, path_length: int
) -> None:
    basic = _extension(certificate, x509.BasicConstraints)
    _require(
        basic.critical and basic.value.ca and basic.value.path_length == path_length,
        f"critical basicConstraints, cA, pathlen {path_length} (RFC 5280 4.2.1.9)",
    )
    usage = _extension(certificate, x509.KeyUsage)
    _require(
        usage.critical and usage.value == _key_usage(signs_certificates=True),
        "critical key usage: keyCertSign and cRLSign only (RFC 5280 4.2.1.3)",
    )
    names = list(_extension(certificate, x509.SubjectAlternativeName).value)
    expected = x509.UniformResourceIdentifier(str(SpiffeId(trust_domain, "")))
    _require(names == [expected], f"the SPIFFE ID is {expected.value}, without a path (X509-SVID 4.1)")
    _require(bool(certificate.subject.rdns), "a signing certificate has a subject (RFC 5280 4.1.2.6)")
    _require_link(certificate, issuer)


def _require_link(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    _require(0 < certificate.serial_number < 1 << _MAX_SERIAL_BITS, "serial: positive, 20 octets (RFC 5280 4.1.2.2)")
    identifier = _extension(certificate, x509.AuthorityKeyIdentifier).value
    _require(identifier == _issued_by(issuer), "the authority key identifier is the issuer's (RFC 5280 4.2.1.1)")
    _require(
        certificate.not_valid_before_utc >= issuer.not_valid_before_utc
        and certificate.not_valid_after_utc <= issuer.not_valid_after_utc,
        "the validity lies within the issuer's",
    )
    require_signature(certificate, issuer)


def require_signature(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    """Raise ProfileError unless ``issuer`` signed ``certificate`` and is named in it."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError) as exc:
        raise ProfileError("the signature or the issuer's name does not match") from exc


def _extension(certificate: x509.Certificate, kind: type[_ExtensionT]) -> x509.Extension[_ExtensionT]:
    for extension in certificate.extensions:
        if extension.oid == kind.oid:  # as in ca.svid
            assert isinstance(extension.value, kind)
            return cast("x509.Extension[_ExtensionT]", extension)
    raise ProfileError(f"the certificate has no {kind.__name__}")


def _require(fulfilled: bool, rule: str) -> None:
    if not fulfilled:
        raise ProfileError(rule)
