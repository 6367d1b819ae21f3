"""Certificates for tests: a small authority of its own.

Deliberately independent of ``ca.authority``, which makes only good
certificates: here every rule can be broken, one at a time.  The vectors that
are made of them are in ``tests/svid_vectors/``.

    root = make_root("cluster.local")
    leaf = root.intermediate().leaf("spiffe://cluster.local/ns/default/sa/web")
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ca.csr import PrivateKey
from ca.svid import load_certificate
from ca.tls import KeyAndChain

TRUST_DOMAIN: Final = "cluster.local"
WEB: Final = "spiffe://cluster.local/ns/default/sa/web"
AnyKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey | rsa.RSAPrivateKey

START: Final = datetime.now(UTC).replace(microsecond=0)
BOTH_PURPOSES: Final = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
_ECDSA_WITH_SHA256: Final = bytes.fromhex("300a06082a8648ce3d040302")
_ECDSA_WITH_SHA1: Final = bytes.fromhex("300906072a8648ce3d0401")
_serials: Final = itertools.count(1000)


def p256() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@functools.cache
def rsa_key(bits: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


def key_usage(**flags: bool) -> x509.KeyUsage:
    """A key usage with only the given flags set."""
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: flags.get(name, False) for name in names})


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A leaf with its key and what it sends along; ``signers`` ends with the root, which is not sent."""

    certificate: x509.Certificate
    key: AnyKey
    signers: tuple[x509.Certificate, ...]

    @property
    def own(self) -> KeyAndChain:
        return KeyAndChain(key=cast("PrivateKey", self.key), chain=(self.certificate, *self.signers[:-1]))

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """From leaf to root."""
        return (self.certificate, *self.signers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """A root or an intermediate with its key."""

    certificate: x509.Certificate
    key: AnyKey
    trust_domain: str
    signers: tuple[x509.Certificate, ...]  # this one and those above it; the root is last

    @property
    def root(self) -> x509.Certificate:
        return self.signers[-1]

    def intermediate(self, *, names: Sequence[str] | None = None, **changes: Any) -> "Signer":
        """Sign an intermediate; ``names`` are its URI names, one path-less SPIFFE ID by default."""
        names = (f"spiffe://{self.trust_domain}",) if names is None else names
        key, certificate = _make_signing(name="intermediate", names=names, issuer=self, **changes)
        signers = (certificate, *self.signers)
        return Signer(certificate=certificate, key=key, trust_domain=self.trust_domain, signers=signers)

    def leaf(
        self,
        *uris: str,
        key: AnyKey | None = None,
        public_key: Any = None,
        other_names: Sequence[x509.GeneralName] = (),
        names_critical: bool = True,
        subject: str | None = None,
        ca: bool | None = False,
        usage: x509.KeyUsage | None = None,
        usage_absent: bool = False,
        usage_critical: bool = True,
        purposes: Sequence[x509.ObjectIdentifier] | None = BOTH_PURPOSES,
        not_before: datetime = START - timedelta(minutes=1),
        not_after: datetime = START + timedelta(hours=1),
        authority_key: AnyKey | None = None,
    ) -> Leaf:
        """Sign a leaf; every argument but the URI names is a way to make it unusual.

        With ``public_key``, the key is somebody else's, and ``key`` of the result is not its own.
        """
        key = key or p256()
        parts = [] if subject is None else [x509.NameAttribute(NameOID.COMMON_NAME, subject)]
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(parts))
            .issuer_name(self.certificate.subject)
            .serial_number(next(_serials))
            .public_key(public_key or key.public_key())
            .not_valid_before(not_before)
            .not_valid_after(not_after)
            .add_extension(_issued_by(self.certificate, authority_key), critical=False)
        )
        names = [*(x509.UniformResourceIdentifier(uri) for uri in uris), *other_names]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=names_critical)
        if ca is not None:
            builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        if ca:
            builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        if not usage_absent:
            builder = builder.add_extension(usage or key_usage(digital_signature=True), critical=usage_critical)
        if purposes is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        return Leaf(certificate=_sign(builder, self.key), key=key, signers=self.signers)


def _issued_by(issuer: x509.Certificate, another_key: AnyKey | None) -> x509.AuthorityKeyIdentifier:
    if another_key is not None:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(another_key.public_key())
    try:
        own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:  # a leaf that signs
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key())  # type: ignore[arg-type]
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def make_root(trust_domain: str = TRUST_DOMAIN, *, names: Sequence[str] | None = None, **changes: Any) -> Signer:
    """Make a self-signed root; ``names`` are its URI names, one path-less SPIFFE ID by default.

    ``changes`` are the arguments of ``_make_signing``: ways to make it unusual.
    """
    names = (f"spiffe://{trust_domain}",) if names is None else names
    key, certificate = _make_signing(name=f"root of {trust_domain}", names=names, issuer=None, **changes)
    return Signer(certificate=certificate, key=key, trust_domain=trust_domain, signers=(certificate,))


def _make_signing(
    *,
    name: str,
    names: Sequence[str],
    issuer: Signer | None,
    key: AnyKey | None = None,
    subject: x509.Name | None = None,
    key_identifier: bytes | None = None,
    ca: bool = True,
    usage: x509.KeyUsage | None = None,
    constraints: x509.NameConstraints | None = None,
    not_before: datetime = START - timedelta(days=1),
    not_after: datetime = START + timedelta(days=365),
) -> tuple[AnyKey, x509.Certificate]:
    key = key or p256()
    serial = next(_serials)
    subject = subject or x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} {serial}")])
    own_identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    if key_identifier is not None:
        own_identifier = x509.SubjectKeyIdentifier(key_identifier)
    issuer_identifier = own_identifier
    if issuer is not None:
        issuer_identifier = issuer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    signing_key = key if issuer is None else issuer.key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.certificate.subject)
        .serial_number(serial)
        .public_key(key.public_key())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(usage or key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(own_identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_identifier), critical=False
        )
    )
    if names:
        uris = [x509.UniformResourceIdentifier(uri) for uri in names]
        builder = builder.add_extension(x509.SubjectAlternativeName(uris), critical=False)
    if constraints is not None:
        builder = builder.add_extension(constraints, critical=True)
    return key, _sign(builder, signing_key)


def _sign(builder: x509.CertificateBuilder, key: AnyKey) -> x509.Certificate:
    own_digest = isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    return builder.sign(key, None if own_digest else hashes.SHA256())


def with_serial_byte(leaf: Leaf, signer: Signer, first: int) -> Leaf:
    """Return ``leaf`` with another first byte of its serial number, signed again: 0x80 and above is negative."""
    serial = leaf.certificate.serial_number.to_bytes(2, "big")
    tbs = leaf.certificate.tbs_certificate_bytes.replace(
        b"\x02\x02" + serial, b"\x02\x02" + bytes([first, serial[1]]), 1
    )
    return _signed_again(leaf, signer, tbs, _ECDSA_WITH_SHA256, hashes.SHA256())


def with_sha1(leaf: Leaf, signer: Signer) -> Leaf:
    """Return ``leaf`` signed again with SHA-1, which ``cryptography`` no longer does for certificates."""
    content = leaf.certificate.tbs_certificate_bytes[4:].replace(_ECDSA_WITH_SHA256, _ECDSA_WITH_SHA1, 1)
    return _signed_again(leaf, signer, _sequence(content), _ECDSA_WITH_SHA1, hashes.SHA1())


def _signed_again(leaf: Leaf, signer: Signer, tbs: bytes, algorithm: bytes, digest: hashes.HashAlgorithm) -> Leaf:
    assert isinstance(signer.key, ec.EllipticCurvePrivateKey)
    hasher = hashes.Hash(digest)
    hasher.update(tbs)
    signature = b"\x00" + signer.key.sign(hasher.finalize(), ec.ECDSA(Prehashed(digest)))
    der = _sequence(tbs + algorithm + b"\x03" + bytes([len(signature)]) + signature)
    return Leaf(certificate=load_certificate(der), key=leaf.key, signers=leaf.signers)


def _sequence(content: bytes) -> bytes:
    return b"\x30\x82" + len(content).to_bytes(2, "big") + content


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)
