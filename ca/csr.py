"""Keys and certificate signing requests, on the side that asks.

Keys are P-256: what every TLS peer supports and signs with in ~30 us.  The
request has an empty subject and one critical URI name, which is what the CA
copies; everything else in the certificate is the CA's decision.
"""

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ca.spiffe import SpiffeId

PrivateKey = ec.EllipticCurvePrivateKey


def new_key() -> PrivateKey:
    """Make a P-256 key, in memory; takes about 50 us."""
    return ec.generate_private_key(ec.SECP256R1())


def build_csr(key: PrivateKey, identity: SpiffeId) -> bytes:
    """Return a PKCS #10 request in DER that binds ``identity`` to ``key``."""
    name = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))])
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(name, critical=True)
    return request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def key_to_pem(key: PrivateKey, passphrase: bytes | None = None) -> bytes:
    """Return the key as PKCS #8; in clear when there is no passphrase, so mind where it goes."""
    protection: serialization.KeySerializationEncryption = (
        serialization.NoEncryption() if passphrase is None else serialization.BestAvailableEncryption(passphrase)
    )
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)
