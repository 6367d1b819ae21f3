"""Fuzz target: certificate signing requests.

Any bytes are a key that may be certified or a ``Refusal`` that names its rule,
in text that may be logged; and a key only with a signature of its own.
"""

import atheris
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

with atheris.instrument_imports(include=["ca"]):
    from ca.authority.errors import Refusal
    from ca.authority.signer import requested_key
    from ca.csr import build_csr, new_key
    from ca.messages import RefusalCode

from tests.fuzz import der, harness
from tests.message_examples import NODE, WEB


def target(data: bytes) -> None:
    try:
        key = requested_key(data, WEB)
    except Refusal as refusal:
        assert refusal.code is RefusalCode.BAD_CSR
        assert refusal.text.isprintable()
        return
    if isinstance(key, ec.EllipticCurvePublicKey):
        assert key.curve.name in {"secp256r1", "secp384r1"}
    else:
        assert isinstance(key, ed25519.Ed25519PublicKey)
    request = x509.load_der_x509_csr(data)
    assert request.is_signature_valid
    assert not request.subject.rdns


def seeds() -> list[bytes]:
    key, made = new_key(), [build_csr(new_key(), WEB), build_csr(new_key(), NODE)]
    name = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(WEB))])
    plain = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    asked = plain.add_extension(name, critical=True)
    authority = x509.BasicConstraints(ca=True, path_length=None)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "web")])
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    requests = [
        plain.sign(key, hashes.SHA256()),
        asked.add_extension(authority, critical=True).sign(key, hashes.SHA256()),
        asked.sign(key, hashes.SHA224()),
        asked.sign(ec.generate_private_key(ec.SECP384R1()), hashes.SHA384()),
        asked.sign(ec.generate_private_key(ec.SECP521R1()), hashes.SHA512()),
        asked.sign(ed25519.Ed25519PrivateKey.generate(), None),
        asked.sign(weak, hashes.SHA256()),
        x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256()),
        asked.add_attribute(x509.oid.AttributeOID.CHALLENGE_PASSWORD, b"x").sign(key, hashes.SHA256()),
    ]
    return made + [request.public_bytes(serialization.Encoding.DER) for request in requests]


if __name__ == "__main__":
    harness.main("tests.fuzz.csr", target, seeds(), der.mutate)
