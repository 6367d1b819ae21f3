"""Fuzz target: JWT-SVIDs that somebody presents.

Any bytes are a token of an identity or a ``JwtSvidError``.  Tokens that were
changed are signed again, so that the changes get past the signature.
"""

import base64
import json
from datetime import UTC, datetime
from typing import Any

import atheris
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

with atheris.instrument_imports(include=["ca"]):
    from ca.csr import new_key
    from ca.jwt_svid import JwtSvid, JwtSvidError, encode_signed

from tests.fuzz import harness
from tests.message_examples import WEB

_AT = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
_KEY = new_key()
_PUBLIC = _KEY.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def target(data: bytes) -> None:
    try:
        found = JwtSvid.verify(
            data.decode("utf-8", "replace"), audience="db", public_key_of=lambda domain, key: _PUBLIC, at=_AT
        )
    except JwtSvidError as error:
        assert str(error).isprintable()
        return
    assert "db" in found.audience
    assert found.expires_at.tzinfo is not None
    assert str(found.identity).isascii()


def _write(parts: Any) -> bytes:
    header, claims = parts
    unsigned = _part(json.dumps(header).encode()) + b"." + _part(json.dumps(claims).encode())
    r, s = decode_dss_signature(_KEY.sign(unsigned, ec.ECDSA(hashes.SHA256())))
    return encode_signed(unsigned, r.to_bytes(32, "big") + s.to_bytes(32, "big")).encode()


def _read(token: bytes) -> list[Any]:
    header, claims, _ = token.split(b".")
    return [json.loads(base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4))) for part in (header, claims)]


def _part(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def seeds() -> list[bytes]:
    header = {"alg": "ES256", "kid": "k1", "typ": "JWT"}
    claims = {"sub": str(WEB), "aud": ["db"], "exp": int(_AT.timestamp()) + 300, "iat": int(_AT.timestamp())}
    return [
        _write([header, claims]),
        _write([header, claims | {"aud": "db"}]),
        _write([header | {"alg": "none"}, claims]),
        _write([header | {"crit": ["exp"]}, claims]),
        _write([header, claims | {"exp": 0}]),
        _write([header, claims | {"sub": "spiffe://other/x", "nbf": 1.5}]),
        b"e30.e30.",
    ]


if __name__ == "__main__":
    errors = (ValueError, TypeError, RecursionError, IndexError)
    harness.main("tests.fuzz.jwts", target, seeds(), harness.message_mutator(_read, _write, errors=errors))
