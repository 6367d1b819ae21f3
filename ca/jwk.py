"""Public keys as JSON Web Keys and back (RFC 7517, RFC 7518 section 6, RFC 8037).

Sans-I/O.  A key of a kind that is not known is None, because RFC 7517 section
5 wants such entries ignored; one of a known kind that is malformed or too weak
is an error.
"""

import base64
import re
from collections.abc import Mapping
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey

_CURVES: Final[Mapping[str, type[ec.EllipticCurve]]] = {
    "P-256": ec.SECP256R1,
    "P-384": ec.SECP384R1,
    "P-521": ec.SECP521R1,
}
_MIN_RSA_BITS: Final = 2048  # RFC 7518 3.3: "A key of size 2048 bits or larger MUST be used"
_MAX_RSA_BYTES: Final = 1024  # 8192 bits: beyond it a verification costs milliseconds
_MAX_RSA_EXPONENT_BITS: Final = 64  # FIPS 186-5 allows up to 256; whoever needs more than 65537 is up to something
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_NOT_PUBLIC: Final = ("d", "p", "q", "dp", "dq", "qi", "oth", "k")


class JwkError(ValueError):
    """A key is malformed or too weak; the text names the section."""


def key_type(key: object) -> str | None:
    """The ``kty`` of a public key, or None if it has none that is known here."""
    match key:
        case ec.EllipticCurvePublicKey():
            return "EC"
        case rsa.RSAPublicKey():
            return "RSA"
        case ed25519.Ed25519PublicKey():
            return "OKP"
        case _:
            return None


def to_jwk(key: PublicKey) -> dict[str, str]:
    """Write a public key."""
    match key:
        case ec.EllipticCurvePublicKey():
            # RFC 7518 6.2.1.2: the coordinate has the full length of the field, leading zeros and all.
            size = (key.curve.key_size + 7) // 8
            point = key.public_numbers()
            curve = next(name for name, each in _CURVES.items() if isinstance(key.curve, each))
            return {"kty": "EC", "crv": curve, "x": _encoded(point.x, size), "y": _encoded(point.y, size)}
        case rsa.RSAPublicKey():
            numbers = key.public_numbers()
            return {"kty": "RSA", "n": _encoded(numbers.n), "e": _encoded(numbers.e)}
        case ed25519.Ed25519PublicKey():
            raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
            return {"kty": "OKP", "crv": "Ed25519", "x": _base64url(raw)}


def from_jwk(fields: Mapping[str, Any]) -> PublicKey | None:
    """Read a public key; None if its type or curve is not known here.

    Raises:
        JwkError: it is malformed, too weak, or holds a private part.
    """
    if any(name in fields for name in _NOT_PUBLIC):
        raise JwkError("holds a private or symmetric key (RFC 7517 9.2)")
    try:
        match fields.get("kty"):
            case "EC":
                return _elliptic(fields)
            case "RSA":
                return _rsa(fields)
            case "OKP" if fields.get("crv") == "Ed25519":
                return ed25519.Ed25519PublicKey.from_public_bytes(_bytes(fields, "x", 32))
            case _:
                return None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise error if isinstance(error, JwkError) else JwkError(f"is no valid key: {error}") from error


def _elliptic(fields: Mapping[str, Any]) -> ec.EllipticCurvePublicKey | None:
    name = fields.get("crv")
    if not isinstance(name, str) or name not in _CURVES:
        return None
    curve = _CURVES[name]()
    size = (curve.key_size + 7) // 8
    x, y = (int.from_bytes(_bytes(fields, part, size), "big") for part in ("x", "y"))
    return ec.EllipticCurvePublicNumbers(x, y, curve).public_key()  # raises when the point is not on the curve


def _rsa(fields: Mapping[str, Any]) -> rsa.RSAPublicKey:
    n, e = (int.from_bytes(_bytes(fields, name, None), "big") for name in ("n", "e"))
    if e.bit_length() > _MAX_RSA_EXPONENT_BITS:
        raise JwkError(f"an RSA exponent of {e.bit_length()} bits, more than {_MAX_RSA_EXPONENT_BITS}")
    if n.bit_length() < _MIN_RSA_BITS:
        raise JwkError(f"an RSA key of {n.bit_length()} bits, less than {_MIN_RSA_BITS} (RFC 7518 3.3)")
    return rsa.RSAPublicNumbers(e, n).public_key()


def _bytes(fields: Mapping[str, Any], name: str, size: int | None) -> bytes:
    text = fields.get(name)
    if not isinstance(text, str) or len(text) > 2 * _MAX_RSA_BYTES or not _BASE64URL.fullmatch(text):
        raise JwkError(f"{name!r} has to be base64url without padding (RFC 7515 2)")
    raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if len(raw) > _MAX_RSA_BYTES or (size is not None and len(raw) != size):
        raise JwkError(f"{name!r} has {len(raw)} bytes, not {size or f'{_MAX_RSA_BYTES} at most'} (RFC 7518 6)")
    return raw


def _encoded(number: int, size: int | None = None) -> str:
    return _base64url(number.to_bytes(size or (number.bit_length() + 7) // 8, "big"))


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
