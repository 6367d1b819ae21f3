"""A root that is somebody else's: what is asked of an existing PKI, and what is accepted from it.

    ringfence ca init --root-cert root.pem --intermediate-csr ringfence.csr
    (the existing PKI signs the request)
    ringfence ca install-intermediate chain.pem

The root may have any key that X509-SVID verifiers accept, and no SPIFFE ID;
certificates of the existing PKI may lie between it and our intermediate.  Ours
has to be what the request asks for: a CA that can sign SVIDs of one trust
domain, and nothing else.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization

from ca.authority import profile
from ca.authority.errors import AuthorityError
from ca.csr import PrivateKey
from ca.svid import SvidError, check_dates, check_signing_certificate

_MAX_FILE_BYTES: Final = 256 * 1024
_MAX_CHAIN: Final = 5  # what verifiers send around in every handshake; more is a mistake


def read_certificates(path: Path) -> tuple[x509.Certificate, ...]:
    """Read a PEM file with certificates.

    Raises:
        AuthorityError: there are none in it, or one can not be read.
    """
    try:
        with path.open("rb") as file:
            pem = file.read(_MAX_FILE_BYTES)
    except OSError as exc:
        raise AuthorityError(f"{path}: can not be read: {exc.strerror}; give a file with certificates in PEM") from exc
    try:
        return tuple(x509.load_pem_x509_certificates(pem))
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise AuthorityError(
            f"{path}: holds no certificate that can be read; it has to be PEM (-----BEGIN CERTIFICATE-----); "
            "convert with: openssl x509 -inform DER"
        ) from exc


def read_root(path: Path, *, trust_domain: str, at: datetime) -> x509.Certificate:
    """Read somebody else's root and judge it.

    Raises:
        AuthorityError: it is none, or not one that agents could trust.
    """
    certificates = read_certificates(path)
    if len(certificates) != 1:
        raise AuthorityError(f"{path}: holds {len(certificates)} certificates; give the root alone")
    try:
        require_root(certificates[0], trust_domain=trust_domain)
        check_dates(certificates[0], at=at)
    except (profile.ProfileError, SvidError) as exc:
        raise AuthorityError(f"{path}: can not be the root of {trust_domain}: {exc}") from exc
    return certificates[0]


def build_csr(key: PrivateKey, *, trust_domain: str) -> bytes:
    """Ask for an intermediate: PKCS #10 (RFC 2986) in PEM, with every extension that it needs."""
    name = profile.signing_name("intermediate", key.public_key())
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    for extension, critical in profile.intermediate_extensions(trust_domain, key.public_key()):
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def require_root(certificate: x509.Certificate, *, trust_domain: str) -> None:
    """Raise ProfileError or SvidError unless agents can be given ``certificate`` as a root of ``trust_domain``."""
    if certificate.subject != certificate.issuer:
        raise profile.ProfileError("it is not self-signed: give the root itself (RFC 5280 3.2)")
    _require_signed(certificate, certificate)
    check_signing_certificate(certificate, trust_domain=trust_domain)
    profile.key_id(certificate)


def require_chain(chain: Sequence[x509.Certificate], *, root: x509.Certificate, trust_domain: str) -> None:
    """Judge our intermediate (first) and the certificates between it and ``root``.

    Raises:
        ProfileError: our intermediate is not what was asked for, or a link of the chain does not hold.
        SvidError: a certificate above it is not one that may sign.
    """
    if len(chain) > _MAX_CHAIN:
        raise profile.ProfileError(f"{len(chain)} certificates: {_MAX_CHAIN} are the most, without the root")
    for position, (certificate, issuer) in enumerate(zip(chain, [*chain[1:], root], strict=True)):
        check_signing_certificate(certificate, trust_domain=trust_domain)
        _require_signed(certificate, issuer)
        _require_path_length(issuer, below=position + 1)
    profile.require_constrained(chain[0], trust_domain=trust_domain)


def chain_to(
    certificates: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], *, ours: x509.Certificate
) -> tuple[list[x509.Certificate], x509.Certificate]:
    """Put what a PKI returned in order: ``ours``, those above it, and the root of ours that they reach.

    PKIs return the chain in either order, and with the root or without.

    Raises:
        ProfileError: a link is missing.
    """
    chain = [ours]
    while True:
        for root in roots:
            if _is_signed_by(chain[-1], root):
                return chain, root
        above = [each for each in certificates if each not in chain and _is_signed_by(chain[-1], each)]
        if not above:
            raise profile.ProfileError(
                f"nothing in it leads from {chain[-1].subject.rfc4514_string()!r} to a root of this authority: "
                "add the certificates in between, in PEM"
            )
        chain.append(above[0])


def _require_signed(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    try:
        identifier = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except x509.ExtensionNotFound:
        identifier = None
    # RFC 5280 4.2.1.1: only a self-signed certificate may omit it.
    if identifier != bytes.fromhex(profile.key_id(issuer)) and (identifier is not None or certificate != issuer):
        raise profile.ProfileError("the authority key identifier is not the issuer's (RFC 5280 4.2.1.1)")
    if certificate.not_valid_after_utc > issuer.not_valid_after_utc:
        raise profile.ProfileError(
            f"it ends after its issuer {issuer.subject.rfc4514_string()!r}; "
            "both are judged at the same moment (RFC 5280 6.1.3)"
        )
    profile.require_signature(certificate, issuer)


def _require_path_length(issuer: x509.Certificate, *, below: int) -> None:
    constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
    if constraints.path_length is not None and constraints.path_length < below:
        raise profile.ProfileError(
            f"{issuer.subject.rfc4514_string()!r} has pathlen {constraints.path_length}, too short for {below} "
            "signing certificates below it (RFC 5280 4.2.1.9)"
        )


def _is_signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
