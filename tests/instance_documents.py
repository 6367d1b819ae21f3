"""Documents about machines, signed as a provider signs them."""

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.x509.oid import NameOID

from ca.wire import pack

Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
ACCOUNT: Final = "123456789012"


class Provider:
    """Has a key, and vouches for machines."""

    def __init__(self, *, key: Key | None = None, at: datetime, days: int = 365) -> None:
        self.key: Key = key or ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "instances.example")])
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.key.public_key())
            .serial_number(1)
            .not_valid_before(at - timedelta(days=1))
            .not_valid_after(at + timedelta(days=days))
            .sign(self.key, None if isinstance(self.key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def sign(self, document: bytes) -> bytes:
        match self.key:
            case rsa.RSAPrivateKey():
                return self.key.sign(document, padding.PKCS1v15(), hashes.SHA256())
            case ec.EllipticCurvePrivateKey():
                return self.key.sign(document, ec.ECDSA(hashes.SHA256()))
            case ed25519.Ed25519PrivateKey():
                return self.key.sign(document)

    def evidence(self, document: bytes) -> bytes:
        return pack({"document": document, "signature": self.sign(document)})

    def signature_text(self, document: bytes) -> str:
        """As a metadata service hands it out: Base64, in lines."""
        return base64.encodebytes(self.sign(document)).decode()


def document(instance: str = "i-0abc", *, at: datetime | None = None, **changes: Any) -> bytes:
    fields = {
        "accountId": ACCOUNT,
        "instanceId": instance,
        "region": "eu-central-1",
        "privateIp": "10.0.0.7",
        "pendingTime": (at or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    return json.dumps(fields | changes, indent=2).encode()
