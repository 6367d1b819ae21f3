"""Which certificates prove a SPIFFE ID: the rules of SPIFFE X509-SVID, one by one.

What is checked where:

* signatures, issuer names, key identifiers, path length and name constraints
  (RFC 5280 section 6) are OpenSSL's work, during the handshake, with
  ``X509_V_FLAG_X509_STRICT`` and the roots of one trust domain only;
* everything that SPIFFE adds, and the dates, are checked here, on the chain
  that OpenSSL verified.

Dates have a tolerance that OpenSSL does not offer: clocks of nodes differ, and
a peer whose clock is a few seconds off is not an attacker.  ``CLOCK_SKEW`` is
granted either way.

Sans-I/O: callers pass ``at``, an aware datetime in UTC.  Section numbers are
those of X509-SVID unless another document is named.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Final, TypeVar, cast

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID

from ca.spiffe import SpiffeId, SpiffeIdError

CLOCK_SKEW: Final = timedelta(seconds=60)  # nodes 5-30 s apart are common; beyond a minute is a broken clock
_MIN_RSA_BITS: Final = 2048
_CURVES: Final = ("secp256r1", "secp384r1", "secp521r1")
_DIGESTS: Final = ("sha256", "sha384", "sha512")

# What the X.509 parser raises, some of it only when an extension is looked at.
_MALFORMED: Final = (
    ValueError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)

_Kind = TypeVar("_Kind", bound=x509.ExtensionType)


class SvidError(ValueError):
    """A certificate is not a valid X509-SVID.

    ``rule`` says what it breaks, ``section`` where that is written.
    """

    def __init__(self, rule: str, section: str) -> None:
        super().__init__(f"{rule} ({section})")
        self.rule = rule
        self.section = section


class SvidDateError(SvidError):
    """A certificate of the chain is expired or not yet valid, by more than the clock skew."""


def load_certificate(der: bytes) -> x509.Certificate:
    """Read one certificate that somebody else sent.

    Raises:
        SvidError: it is not a certificate.
    """
    try:
        with _lenient_parser():
            return x509.load_der_x509_certificate(der)
    except _MALFORMED as error:
        raise SvidError(f"malformed certificate: {error}", "RFC 5280 section 4") from error


def identity_of(leaf: x509.Certificate) -> SpiffeId:
    """Return the SPIFFE ID that ``leaf`` carries, if ``leaf`` is a valid leaf.

    Says nothing about who signed it and about its dates.

    Raises:
        SvidError: the first rule that it breaks.
    """
    try:
        _check_form(leaf)
        identity = _spiffe_id(leaf)
        _check_leaf_constraints(leaf)
    except SvidError:
        raise
    except _MALFORMED as error:
        raise SvidError(f"malformed certificate: {error}", "RFC 5280 section 4") from error
    return identity


def verify_chain(chain: Sequence[x509.Certificate], *, trust_domain: str) -> SpiffeId:
    """Check a chain that OpenSSL built from leaf to root, but for its dates; return who the leaf is.

    ``trust_domain`` is the one whose roots the chain was verified with: a
    signing certificate proves nothing about any other (section 5.1 and
    SPIFFE Federation section 5).

    Raises:
        SvidError: the first rule that the leaf or a signing certificate breaks.
    """
    if len(chain) < 2:
        raise SvidError("the chain holds no signing certificate", "X509-SVID 5.1")
    leaf, *signers = chain
    identity = identity_of(leaf)
    if identity.trust_domain != trust_domain:
        raise SvidError(
            f"trust domain {identity.trust_domain!r} can not be vouched for by the bundle of {trust_domain!r}",
            "X509-SVID 5.1",
        )
    for signer in signers:
        check_signing_certificate(signer, trust_domain=trust_domain)
    return identity


def check_signing_certificate(signer: x509.Certificate, *, trust_domain: str) -> None:
    """Check a root or an intermediate of ``trust_domain``.

    Raises:
        SvidError: the first rule that it breaks.
    """
    try:
        _check_form(signer)
        constraints = _extension(signer, x509.BasicConstraints)
        if constraints is None or not constraints.value.ca:
            raise SvidError("a signing certificate has to have cA set", "X509-SVID 4.1")
        usage = _extension(signer, x509.KeyUsage)
        if usage is None or not usage.value.key_cert_sign:
            raise SvidError("a signing certificate has to have keyCertSign set", "X509-SVID 4.3")
        uris = _uris(signer)
        if not uris:
            return
        if len(uris) > 1:
            raise SvidError("a signing certificate has more than one URI name", "X509-SVID 2")
        identity = _parse_id(uris[0])
    except SvidError:
        raise
    except _MALFORMED as error:
        raise SvidError(f"malformed certificate: {error}", "RFC 5280 section 4") from error
    if identity.path:
        raise SvidError(f"the ID of a signing certificate has a path: {identity}", "X509-SVID 3.2")
    if identity.trust_domain != trust_domain:
        raise SvidError(f"a signing certificate of {identity} in the bundle of {trust_domain!r}", "X509-SVID 5.1")


def check_dates(certificate: x509.Certificate, *, at: datetime, skew: timedelta = CLOCK_SKEW) -> None:
    """Check that ``at`` is within the validity of one certificate, give or take ``skew``.

    Raises:
        SvidDateError: its text has all three times, because the usual cause is a wrong clock.
    """
    not_before, not_after = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if at > not_after + skew:
        rule = "expired"
    elif at < not_before - skew:
        rule = "not yet valid"
    else:
        return
    raise SvidDateError(
        f"{rule}: valid from {_shown(not_before)} to {_shown(not_after)}, and it is {_shown(at)} here",
        "RFC 5280 section 4.1.2.5",
    )


@contextmanager
def _lenient_parser() -> Iterator[None]:
    """The parser only warns of a serial number that is not positive; rejecting it is ours, silence too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        yield


def _check_form(certificate: x509.Certificate) -> None:
    """What holds for every certificate of a chain: version, serial, key and signature algorithm."""
    if certificate.version is not x509.Version.v3:
        raise SvidError("not an X.509 version 3 certificate", "RFC 5280 section 4.1.2.1")
    with _lenient_parser():
        serial = certificate.serial_number
    if serial <= 0:
        raise SvidError("the serial number is not positive", "RFC 5280 section 4.1.2.2")
    _check_key(certificate)
    try:
        digest = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm as error:
        raise SvidError("signed with an algorithm that is not known", "RFC 5280 section 4.1.1.2") from error
    # None: the algorithm has its own digest, which is Ed25519 (others fail at the key of their signer).
    if digest is not None and digest.name not in _DIGESTS:
        raise SvidError(f"signed with {digest.name}", "RFC 9155 section 2")


def _check_key(certificate: x509.Certificate) -> None:
    try:
        key = certificate.public_key()
    except (UnsupportedAlgorithm, ValueError) as error:
        raise SvidError("the public key is of a kind that is not known", "RFC 5480 section 2") from error
    match key:
        case rsa.RSAPublicKey() if key.key_size < _MIN_RSA_BITS:
            raise SvidError(f"an RSA key of {key.key_size} bits, less than {_MIN_RSA_BITS}", "NIST SP 800-131A")
        case ec.EllipticCurvePublicKey() if key.curve.name not in _CURVES:
            raise SvidError(f"an elliptic curve key on {key.curve.name}", "RFC 8446 section 4.2.7")
        case rsa.RSAPublicKey() | ec.EllipticCurvePublicKey() | ed25519.Ed25519PublicKey():
            return
        case _:
            raise SvidError("the public key is neither elliptic curve, nor Ed25519, nor RSA", "RFC 8446 section 4.2.3")


def _spiffe_id(leaf: x509.Certificate) -> SpiffeId:
    # "An X.509 SVID MUST contain exactly one URI SAN, and by extension, exactly one SPIFFE ID."
    uris = _uris(leaf)
    if len(uris) != 1:
        raise SvidError(f"{len(uris)} URI names where exactly one has to be", "X509-SVID 2")
    identity = _parse_id(uris[0])
    # "SPIFFE IDs of leaf certificates MUST have a non-root path component."
    if not identity.path:
        raise SvidError(f"{identity} has no path: it names a trust domain, not a workload", "X509-SVID 3.1")
    # "conforming CAs MUST mark subjectAltName as critical if the subject is an empty sequence"
    names = _extension(leaf, x509.SubjectAlternativeName)
    if not leaf.subject.rdns and names is not None and not names.critical:
        raise SvidError("the subject is empty and subjectAltName is not critical", "RFC 5280 section 4.2.1.6")
    return identity


def _check_leaf_constraints(leaf: x509.Certificate) -> None:
    # "leaf certificates MUST set the cA field to false"
    constraints = _extension(leaf, x509.BasicConstraints)
    if constraints is not None and constraints.value.ca:
        raise SvidError("a leaf has cA set", "X509-SVID 4.1")
    # "The key usage extension MUST be set on all SVIDs, and MUST be marked critical."
    usage = _extension(leaf, x509.KeyUsage)
    if usage is None:
        raise SvidError("no key usage", "X509-SVID 4.3")
    if not usage.critical:
        raise SvidError("the key usage is not critical", "X509-SVID 4.3")
    # "Leaf SVIDs MUST set digitalSignature." ... "keyCertSign and cRLSign MUST NOT be set"
    if not usage.value.digital_signature:
        raise SvidError("a leaf has not digitalSignature set", "X509-SVID 4.3")
    if usage.value.key_cert_sign:
        raise SvidError("a leaf has keyCertSign set", "X509-SVID 4.3")
    if usage.value.crl_sign:
        raise SvidError("a leaf has cRLSign set", "X509-SVID 4.3")
    # "When included, fields id-kp-serverAuth and id-kp-clientAuth MUST be set."
    extended = _extension(leaf, x509.ExtendedKeyUsage)
    if extended is not None:
        for purpose, name in (
            (ExtendedKeyUsageOID.SERVER_AUTH, "serverAuth"),
            (ExtendedKeyUsageOID.CLIENT_AUTH, "clientAuth"),
        ):
            if purpose not in extended.value:
                raise SvidError(f"the extended key usage lacks {name}", "X509-SVID 4.4")


def _uris(certificate: x509.Certificate) -> list[str]:
    names = _extension(certificate, x509.SubjectAlternativeName)
    return [] if names is None else names.value.get_values_for_type(x509.UniformResourceIdentifier)


def _parse_id(uri: str) -> SpiffeId:
    try:
        return SpiffeId.parse(uri)
    except SpiffeIdError as error:
        raise SvidError(f"the URI name is not a SPIFFE ID: {error}", "X509-SVID 2") from error


def _extension(certificate: x509.Certificate, kind: type[_Kind]) -> x509.Extension[_Kind] | None:
    for extension in certificate.extensions:
        # By OID and not get_extension_for_class, whose isinstance of an abstract class is a tenth of an issue's time.
        if extension.oid == kind.oid:
            assert isinstance(extension.value, kind)
            return cast("x509.Extension[_Kind]", extension)
    return None


def _shown(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
