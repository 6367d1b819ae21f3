"""What a certificate signing request may say, and that nothing but its key is used."""

import contextlib
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.x509.oid import AttributeOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from ca.authority import profile
from ca.authority.errors import Refusal
from ca.authority.signer import requested_key
from ca.csr import build_csr, new_key
from ca.messages import RefusalCode
from tests.authority_builder import make_authority, workload

AT = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
WEB = workload("web")
_KEY = new_key()
_CSR = build_csr(_KEY, WEB)


def builder(*uris: str) -> x509.CertificateSigningRequestBuilder:
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if uris:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
        request = request.add_extension(names, critical=True)
    return request


def signed(
    request: x509.CertificateSigningRequestBuilder,
    key: object = None,
    digest: hashes.SHA256 | hashes.SHA224 | None = hashes.SHA256(),  # noqa: B008 - a value without state
) -> bytes:
    return request.sign(key or new_key(), digest).public_bytes(serialization.Encoding.DER)  # type: ignore[arg-type]


def refused(csr_der: bytes) -> str:
    with pytest.raises(Refusal) as refusal:
        requested_key(csr_der, WEB)
    assert refusal.value.code is RefusalCode.BAD_CSR
    assert re.search(r"\((RFC \d{4}|X509-SVID) [\d.]+\)", refusal.value.text), refusal.value.text
    return refusal.value.text


@pytest.mark.parametrize(
    "key", [ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP384R1())], ids=["P-256", "P-384"]
)
def test_the_key_of_a_proper_request_is_certified(key: ec.EllipticCurvePrivateKey) -> None:
    found = requested_key(build_csr(key, WEB), WEB)
    assert profile.public_bytes(found) == profile.public_bytes(key.public_key())


def test_an_ed25519_key_is_certified() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    assert isinstance(requested_key(signed(builder(str(WEB)), key, None), WEB), ed25519.Ed25519PublicKey)


def test_a_request_for_anothers_identity_is_refused() -> None:
    assert "the one URI" in refused(build_csr(new_key(), workload("db")))


@pytest.mark.parametrize(
    "uris", [[], [str(WEB), str(WEB)], [str(WEB), str(workload("db"))]], ids=["none", "twice", "two"]
)
def test_a_request_without_exactly_one_identity_is_refused(uris: list[str]) -> None:
    refused(signed(builder(*uris)))


def test_a_request_that_also_names_a_host_is_refused() -> None:
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(WEB)), x509.DNSName("web.example")])
    refused(signed(builder().add_extension(names, critical=True)))


@pytest.mark.parametrize(
    "extension",
    [
        x509.BasicConstraints(ca=True, path_length=None),
        x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.CODE_SIGNING]),
        x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"),
    ],
    ids=["ca", "code-signing", "unknown"],
)
def test_a_request_with_a_surprising_extension_is_refused(extension: x509.ExtensionType) -> None:
    assert "exactly one extension" in refused(signed(builder(str(WEB)).add_extension(extension, critical=False)))


def test_a_request_with_a_subject_is_refused() -> None:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "admin")])
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(WEB))])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).add_extension(names, critical=True)
    assert "subject must be empty" in refused(signed(request))


def test_a_request_with_a_challenge_password_is_refused() -> None:
    request = builder(str(WEB)).add_attribute(AttributeOID.CHALLENGE_PASSWORD, b"secret")
    assert "attributes" in refused(signed(request))


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP224R1()),
        ec.generate_private_key(ec.SECP521R1()),
        ec.generate_private_key(ec.SECP256K1()),
        rsa.generate_private_key(65537, 2048),
        dsa.generate_private_key(2048),
    ],
    ids=["P-224", "P-521", "secp256k1", "RSA", "DSA"],
)
def test_a_request_with_another_kind_of_key_is_refused(key: object) -> None:
    assert "P-256" in refused(signed(builder(str(WEB)), key))


def test_a_request_with_a_weak_digest_is_refused() -> None:
    assert "sha224" in refused(signed(builder(str(WEB)), digest=hashes.SHA224()))


def test_a_request_that_does_not_prove_its_key_is_refused() -> None:
    genuine = bytearray(build_csr(new_key(), WEB))
    other_point = (
        new_key().public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    )
    at = genuine.index(b"\x03\x42\x00\x04") + 3  # the BIT STRING that holds the point
    genuine[at : at + 65] = other_point
    assert "proof of possession" in refused(bytes(genuine))


@given(st.binary(max_size=200))
def test_garbage_is_refused(garbage: bytes) -> None:
    refused(garbage)


@given(st.data())
def test_a_damaged_request_is_refused_or_asks_for_the_same(data: st.DataObject) -> None:
    damaged = bytearray(_CSR)
    position = data.draw(st.integers(0, len(damaged) - 1))
    damaged[position] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(Refusal):
        found = requested_key(bytes(damaged), WEB)
        assert profile.public_bytes(found) == profile.public_bytes(_KEY.public_key())


def test_the_refusal_never_quotes_the_request() -> None:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "line\nforged")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name)
    assert "forged" not in refused(signed(request))


def test_what_is_signed_lives_an_hour_and_comes_with_its_issuer(tmp_path: Path) -> None:
    authority = make_authority(tmp_path, at=AT)
    svid = authority.signer.sign(WEB, new_key().public_key(), at=AT)

    assert svid.certificate.not_valid_after_utc - AT == timedelta(hours=1)
    assert svid.certificate.not_valid_before_utc == AT - timedelta(seconds=60)
    issuer_der = authority.hierarchy.issuer.certificate.public_bytes(serialization.Encoding.DER)
    assert svid.chain_der[1:] == (issuer_der,)


def test_serials_are_positive_random_and_fit_20_octets(tmp_path: Path) -> None:
    signer = make_authority(tmp_path, at=AT).signer
    key = new_key().public_key()
    serials = {signer.sign(WEB, key, at=AT).certificate.serial_number for _ in range(20)}

    assert len(serials) == 20
    assert all(0 < serial < 1 << 159 for serial in serials)
    assert max(serials) > 1 << 150
