"""An existing PKI, as a company has one: a root of its own making, authorities below it, and requests that it signs.

pki = ForeignPki(rsa_key(2048))
certificate = pki.sign(csr_pem)
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509.oid import NameOID

from tests.certificates import AnyKey, key_usage, p256

_SKEW: Final = timedelta(minutes=5)
Extension = tuple[x509.ExtensionType, bool]


class ForeignPki:
    """One signing certificate with its key; ``above`` are those between it and the root, lowest first."""

    def __init__(
        self,
        key: AnyKey | None = None,
        *,
        at: datetime | None = None,
        lifetime: timedelta = timedelta(days=3650),
        path_length: int | None = None,
        name: str = "Example Corp",
        extra: Sequence[Extension] = (),
        usage: x509.KeyUsage | None = None,
        issuer: "ForeignPki | None" = None,
    ) -> None:
        self.key = key or p256()
        self.at = at or datetime.now(UTC).replace(microsecond=0)
        subject = x509.Name(
            [x509.NameAttribute(NameOID.ORGANIZATION_NAME, name), x509.NameAttribute(NameOID.COMMON_NAME, f"{name} CA")]
        )
        public_key = self.key.public_key()
        extensions: list[Extension] = [
            (x509.BasicConstraints(ca=True, path_length=path_length), True),
            (usage or key_usage(key_cert_sign=True, crl_sign=True), True),
            (x509.SubjectKeyIdentifier.from_public_key(public_key), False),
            *extra,
        ]
        signer = issuer or self
        self.subject = subject
        self.certificate = signer._issue(subject, public_key, extensions, lifetime=lifetime, at=self.at)
        self.above: tuple[x509.Certificate, ...] = () if issuer is None else (issuer.certificate, *issuer.above)

    @property
    def root(self) -> x509.Certificate:
        return self.above[-1] if self.above else self.certificate

    @property
    def between(self) -> tuple[x509.Certificate, ...]:
        """What lies between what this one signs and the root."""
        return (self.certificate, *self.above)[:-1]

    def below(self, name: str, **changes: Any) -> "ForeignPki":
        """Another authority of the same PKI, under this one."""
        return ForeignPki(name=name, issuer=self, at=self.at, **changes)

    def sign(
        self,
        csr_pem: bytes,
        *,
        lifetime: timedelta = timedelta(days=365),
        at: datetime | None = None,
        change: Callable[[Extension], Extension | None] = lambda extension: extension,
        authority_key_id: bool = True,
    ) -> x509.Certificate:
        """Sign a request with the extensions that it asks for; ``change`` makes each another, or leaves it out."""
        csr = x509.load_pem_x509_csr(csr_pem)
        asked = [(extension.value, extension.critical) for extension in csr.extensions]
        extensions = [changed for extension in asked if (changed := change(extension)) is not None]
        return self._issue(
            csr.subject,
            csr.public_key(),
            extensions,
            lifetime=lifetime,
            at=at or self.at,
            authority_key_id=authority_key_id,
        )

    def _issue(
        self,
        subject: x509.Name,
        public_key: Any,
        extensions: Sequence[Extension],
        *,
        lifetime: timedelta,
        at: datetime,
        authority_key_id: bool = True,
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.subject)
            .serial_number(x509.random_serial_number())
            .public_key(public_key)
            .not_valid_before(at - _SKEW)
            .not_valid_after(at + lifetime)
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical=critical)
        if authority_key_id:
            identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
            builder = builder.add_extension(identifier, critical=False)
        digest = None if isinstance(self.key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
        return builder.sign(self.key, digest)


def pem_of(*certificates: x509.Certificate) -> bytes:
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates)


def without(kind: type[x509.ExtensionType]) -> Callable[[Extension], Extension | None]:
    """For ``ForeignPki.sign``: leave one extension out."""
    return lambda extension: None if isinstance(extension[0], kind) else extension


def instead(value: x509.ExtensionType, *, critical: bool) -> Callable[[Extension], Extension | None]:
    """For ``ForeignPki.sign``: another value for one extension."""
    return lambda extension: (value, critical) if isinstance(extension[0], type(value)) else extension
