"""Certificates for tests: a small authority of its own, and the vectors of the X509-SVID rules.

Deliberately independent of ``ca.authority``, which makes only good
certificates: here every rule can be broken, one at a time.

    root = make_root("cluster.local")
    leaf = root.intermediate().leaf("spiffe://cluster.local/ns/default/sa/web")
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
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
_BOTH: Final = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
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
        purposes: Sequence[x509.ObjectIdentifier] | None = _BOTH,
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
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key((authority_key or self.key).public_key()),
                critical=False,
            )
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


def make_root(trust_domain: str = TRUST_DOMAIN, *, names: Sequence[str] | None = None, **changes: Any) -> Signer:
    """Make a self-signed root; ``names`` are its URI names, one path-less SPIFFE ID by default."""
    names = (f"spiffe://{trust_domain}",) if names is None else names
    key, certificate = _make_signing(name=f"root of {trust_domain}", names=names, issuer=None, **changes)
    return Signer(certificate=certificate, key=key, trust_domain=trust_domain, signers=(certificate,))


def _make_signing(
    *,
    name: str,
    names: Sequence[str],
    issuer: Signer | None,
    key: AnyKey | None = None,
    ca: bool = True,
    usage: x509.KeyUsage | None = None,
    constraints: x509.NameConstraints | None = None,
    not_before: datetime = START - timedelta(days=1),
    not_after: datetime = START + timedelta(days=365),
) -> tuple[AnyKey, x509.Certificate]:
    key = key or p256()
    serial = next(_serials)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} {serial}")])
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
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), critical=False)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Vector:
    """One certificate chain and what a verifier has to think of it.

    ``root`` is what the verifier trusts.  ``openssl`` says that the rule is
    RFC 5280's and found during the handshake; the others are found by
    ``ca.svid``.  TLS 1.3 can not even present one that is not ``presentable``.
    """

    name: str
    leaf: Leaf
    root: x509.Certificate
    accepted: bool
    openssl: bool = False
    expired: bool = False
    presentable: bool = True
    at: datetime = field(default=START)


@functools.cache
def vectors() -> tuple[Vector, ...]:
    """Every vector about certificates; those about the text of an ID are in tests/unit/ca/test_spiffe.py."""
    return (*_accepted(), *_bad_names(), *_bad_leaves(), *_bad_keys(), *_bad_dates(), *_bad_chains())


class _Bench:
    """One root and one intermediate, and shorthands for vectors under them."""

    def __init__(self) -> None:
        self.root = make_root()
        self.signer = self.root.intermediate()

    def good(self, name: str, leaf: Leaf, **more: Any) -> Vector:
        return Vector(name=name, leaf=leaf, root=leaf.signers[-1], accepted=True, **more)

    def bad(self, name: str, leaf: Leaf, **more: Any) -> Vector:
        return Vector(name=name, leaf=leaf, **{"root": leaf.signers[-1], "accepted": False, **more})


def _accepted() -> list[Vector]:
    bench = _Bench()
    leaf, good = bench.signer.leaf, bench.good
    long_id = WEB + "/" + "a" * (2048 - len(WEB) - 1)
    dns = (x509.DNSName("web.default.svc"),)
    uses = key_usage(digital_signature=True, key_encipherment=True, key_agreement=True)
    inside = x509.NameConstraints([x509.UniformResourceIdentifier(TRUST_DOMAIN)], None)
    minute = timedelta(seconds=59)
    return [
        good("plain", leaf(WEB)),
        good("signed by the root", bench.root.leaf(WEB)),
        good("with a DNS name", leaf(WEB, other_names=dns)),
        good("with a subject and names not critical", leaf(WEB, subject="web", names_critical=False)),
        good("without basic constraints", leaf(WEB, ca=None)),
        good("without extended key usage", leaf(WEB, purposes=None)),
        good("with more key usages", leaf(WEB, usage=uses)),
        good("with an ID of 2048 bytes", leaf(long_id)),
        good("P-384", leaf(WEB, key=ec.generate_private_key(ec.SECP384R1()))),
        good("Ed25519", leaf(WEB, key=ed25519.Ed25519PrivateKey.generate())),
        good("RSA 2048", leaf(WEB, key=rsa_key(2048))),
        good("under an Ed25519 root", make_root(key=ed25519.Ed25519PrivateKey.generate()).intermediate().leaf(WEB)),
        good("signed by an intermediate without an ID", bench.root.intermediate(names=()).leaf(WEB)),
        good("name constraints honoured", bench.root.intermediate(constraints=inside).leaf(WEB)),
        good("expired 59 s ago", leaf(WEB, not_before=START - timedelta(hours=1), not_after=START - minute)),
        good("valid in 59 s", leaf(WEB, not_before=START + minute)),
        good("intermediate expired 59 s ago", bench.root.intermediate(not_after=START - minute).leaf(WEB)),
    ]


def _bad_names() -> list[Vector]:
    bench = _Bench()
    leaf, bad = bench.signer.leaf, bench.bad
    dns = (x509.DNSName("web.default.svc"),)
    return [
        bad("no URI name", leaf(other_names=dns)),
        bad("no names", leaf(subject="web")),
        bad("two URI names", leaf(WEB, WEB + "2")),
        bad("another URI beside the ID", leaf(WEB, "https://cluster.local/")),
        bad("root path", leaf("spiffe://cluster.local")),
        bad("trailing slash", leaf(WEB + "/")),
        bad("empty segment", leaf("spiffe://cluster.local//web")),
        bad("relative segment", leaf("spiffe://cluster.local/ns/../sa")),
        bad("upper-case trust domain", leaf("spiffe://Cluster.local/ns/default/sa/web")),
        bad("upper-case scheme", leaf("SPIFFE://cluster.local/ns/default/sa/web")),
        bad("percent-encoding", leaf("spiffe://cluster.local/%41")),
        bad("port", leaf("spiffe://cluster.local:1/web")),
        bad("user information", leaf("spiffe://root@cluster.local/web")),
        bad("query", leaf(WEB + "?admin")),
        bad("fragment", leaf(WEB + "#admin")),
        bad("ID of 2049 bytes", leaf(WEB + "/" + "a" * (2048 - len(WEB)))),
        bad("another scheme", leaf("https://cluster.local/ns/default/sa/web")),
        bad("names not critical under an empty subject", leaf(WEB, names_critical=False), openssl=True),
    ]


def _bad_leaves() -> list[Vector]:
    bench = _Bench()
    leaf, bad = bench.signer.leaf, bench.bad
    signing = key_usage(digital_signature=True, key_cert_sign=True)
    return [
        bad("cA set", leaf(WEB, ca=True, usage=signing)),
        bad("no key usage", leaf(WEB, usage_absent=True)),
        bad("key usage not critical", leaf(WEB, usage_critical=False)),
        bad("no digitalSignature", leaf(WEB, usage=key_usage(key_agreement=True)), openssl=True),
        bad("keyCertSign", leaf(WEB, usage=signing), openssl=True),
        bad("cRLSign", leaf(WEB, usage=key_usage(digital_signature=True, crl_sign=True))),
        bad("only clientAuth", leaf(WEB, purposes=_BOTH[1:]), openssl=True),
        bad("only serverAuth", leaf(WEB, purposes=_BOTH[:1]), openssl=True),
        bad("another purpose", leaf(WEB, purposes=[ExtendedKeyUsageOID.CODE_SIGNING]), openssl=True),
        bad("negative serial", with_serial_byte(leaf(WEB), bench.signer, 0x83)),
    ]


def _bad_keys() -> list[Vector]:
    bench = _Bench()
    leaf, bad = bench.signer.leaf, bench.bad
    weak = make_root(key=ec.generate_private_key(ec.SECP224R1()))
    return [
        bad("RSA 1024", leaf(WEB, key=rsa_key(1024)), openssl=True),
        bad("P-224", leaf(WEB, key=ec.generate_private_key(ec.SECP224R1())), presentable=False),
        bad("P-224 root", weak.leaf(WEB)),
        bad("P-224 intermediate", bench.root.intermediate(key=ec.generate_private_key(ec.SECP224R1())).leaf(WEB)),
        bad("SHA-1", with_sha1(leaf(WEB), bench.signer), openssl=True),
    ]


def _bad_dates() -> list[Vector]:
    bench = _Bench()
    leaf, bad = bench.signer.leaf, bench.bad
    skew, long_ago = timedelta(seconds=61), START - timedelta(days=30)
    early: dict[str, Any] = {"not_before": START + skew}
    late: dict[str, Any] = {"not_before": long_ago, "not_after": START - skew}
    return [
        bad("expired", leaf(WEB, **late), expired=True),
        bad("not yet valid", leaf(WEB, **early), expired=True),
        bad("intermediate expired", bench.root.intermediate(**late).leaf(WEB), expired=True),
        bad("intermediate not yet valid", bench.root.intermediate(**early).leaf(WEB), expired=True),
        bad("root expired", make_root(**late).leaf(WEB), expired=True),
    ]


def _bad_chains() -> list[Vector]:
    bench = _Bench()
    bad, other = bench.bad, make_root("other.example")
    theirs = "spiffe://other.example/ns/default/sa/web"
    outside = x509.NameConstraints([x509.UniformResourceIdentifier("other.example")], None)
    no_signing = key_usage(digital_signature=True)
    self_signed = make_root(names=(WEB,))
    lone = Leaf(certificate=self_signed.certificate, key=self_signed.key, signers=(self_signed.certificate,))
    as_leaf = Leaf(certificate=bench.signer.certificate, key=bench.signer.key, signers=bench.root.signers)
    under_leaf = bench.signer.leaf(WEB, subject="web")
    pretender = Signer(
        certificate=under_leaf.certificate, key=under_leaf.key, trust_domain=TRUST_DOMAIN, signers=under_leaf.chain
    )
    twin = make_root()
    return [
        bad("self-signed", lone, root=bench.root.certificate, openssl=True),
        bad("right trust domain, wrong root", twin.intermediate().leaf(WEB), root=bench.root.certificate, openssl=True),
        bad("another trust domain under its own root", other.leaf(theirs), root=bench.root.certificate, openssl=True),
        bad("another trust domain under our root", bench.signer.leaf(theirs)),
        bad(
            "intermediate of another trust domain", bench.root.intermediate(names=["spiffe://other.example"]).leaf(WEB)
        ),
        bad("root of another trust domain", make_root(names=["spiffe://other.example"]).leaf(WEB)),
        bad("intermediate whose ID has a path", bench.root.intermediate(names=[WEB]).leaf(WEB)),
        bad("root whose ID has a path", make_root(names=[WEB]).leaf(WEB)),
        bad("intermediate with two IDs", bench.root.intermediate(names=[f"spiffe://{TRUST_DOMAIN}"] * 2).leaf(WEB)),
        bad("signed by a leaf", pretender.leaf(WEB), openssl=True),
        bad("signed by an intermediate without cA", bench.root.intermediate(ca=False).leaf(WEB), openssl=True),
        bad(
            "signed by an intermediate without keyCertSign",
            bench.root.intermediate(usage=no_signing).leaf(WEB),
            openssl=True,
        ),
        bad("name constraints violated", bench.root.intermediate(constraints=outside).leaf(WEB), openssl=True),
        bad("authority key identifier of another key", bench.signer.leaf(WEB, authority_key=twin.key), openssl=True),
        bad("a signing certificate as a leaf", as_leaf),
    ]
