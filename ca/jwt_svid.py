"""Which tokens prove a SPIFFE ID: the rules of SPIFFE JWT-SVID, one by one.

A token is a JWT (RFC 7519) in JWS Compact Serialization (RFC 7515 section
3.1): header, claims and signature in base64url, with dots between.

Closed where the standard leaves room: ``kid`` is required and names the key,
the algorithm has to be the one of that key, nothing may be written in two ways
(base64url without padding and with zero bits at its end, no member twice in
one object), and a token from the future is refused as an expired one is.

Dates have a tolerance, as those of certificates have (``ca.svid.CLOCK_SKEW``).

Sans-I/O: callers pass ``at``, an aware datetime in UTC.  Section numbers are
those of JWT-SVID unless another document is named.  No text of an error quotes
the token: it is a secret of whoever sent it.
"""

import base64
import binascii
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key

from ca.spiffe import SpiffeId, SpiffeIdError
from ca.svid import CLOCK_SKEW

MAX_TOKEN_BYTES: Final = 16 * 1024
MAX_AUDIENCES: Final = 16
MAX_AUDIENCE_CHARACTERS: Final = 512
_MAX_DEPTH: Final = 16  # of objects and arrays inside of claims
_MIN_RSA_BITS: Final = 2048  # RFC 7518 3.3
_HEADER: Final = frozenset({"alg", "kid", "typ"})
_TYPES: Final = ("JWT", "JOSE")
_HASHES: Final[Mapping[str, hashes.HashAlgorithm]] = {
    "256": hashes.SHA256(),
    "384": hashes.SHA384(),
    "512": hashes.SHA512(),
}
_CURVES: Final[Mapping[str, type[ec.EllipticCurve]]] = {
    "ES256": ec.SECP256R1,
    "ES384": ec.SECP384R1,
    "ES512": ec.SECP521R1,
}
ALGORITHMS: Final = frozenset(kind + bits for kind in ("RS", "ES", "PS") for bits in _HASHES)  # section 2.1

PublicKeyOf = Callable[[str, str], bytes | None]
"""From a trust domain and a ``kid`` to the public key (SubjectPublicKeyInfo in DER), or None if there is none."""


class JwtSvidError(ValueError):
    """A token is not a valid JWT-SVID.  ``rule`` says what it breaks, ``section`` where that is written."""

    def __init__(self, rule: str, section: str) -> None:
        super().__init__(f"{rule} ({section})")
        self.rule = rule
        self.section = section


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtSvid:
    """What a token says.  ``claims`` are all of them, as JSON; times are aware UTC."""

    identity: SpiffeId
    audience: tuple[str, ...]
    expires_at: datetime
    key_id: str
    claims: Mapping[str, Any]

    @classmethod
    def verify(cls, token: str, *, audience: str, public_key_of: PublicKeyOf, at: datetime) -> Self:
        """Judge a token that was presented to ``audience``.

        Raises:
            JwtSvidError: the first rule that it breaks.
        """
        header, claims, signed, signature = _split(token)
        algorithm, key_id = _check_header(header)
        identity = _subject(claims)
        found = public_key_of(identity.trust_domain, key_id)
        if found is None:
            # Workload API 6.3: "If a JWT bundle for the specified trust domain is not present, then the token is
            # untrusted", and one bundle never vouches for another trust domain's subject.
            raise JwtSvidError("signed with a key that is not in the trust bundle of its subject", "JWT-SVID 4")
        _check_signature(algorithm, found, signed, signature)
        audiences = _audience(claims)
        # "Validators MUST reject tokens ... if the value that the validator identifies with is not present"
        if not audience or audience not in audiences:
            raise JwtSvidError("meant for another audience", "JWT-SVID 3.2")
        expires_at = _check_dates(claims, at=at)
        return cls(identity=identity, audience=audiences, expires_at=expires_at, key_id=key_id, claims=claims)


def encode_unsigned(header: Mapping[str, Any], claims: Mapping[str, Any]) -> bytes:
    """What is signed: RFC 7515 section 5.1, step 8."""
    return b".".join(_encoded(json.dumps(part, separators=(",", ":")).encode()) for part in (header, claims))


def encode_signed(unsigned: bytes, signature: bytes) -> str:
    """The token."""
    return (unsigned + b"." + _encoded(signature)).decode("ascii")


def check_audience(audience: tuple[str, ...]) -> None:
    """Whether a token may be asked for with this audience.

    Raises:
        JwtSvidError: empty, too much of it, or twice the same.
    """
    # "The `aud` claim MUST be present, containing one or more values."
    if not audience or not all(audience):
        raise JwtSvidError("the audience must be one or more texts that are not empty", "JWT-SVID 3.2")
    if len(audience) > MAX_AUDIENCES or any(len(each) > MAX_AUDIENCE_CHARACTERS for each in audience):
        raise JwtSvidError(
            f"the audience must be at most {MAX_AUDIENCES} texts of {MAX_AUDIENCE_CHARACTERS} characters",
            "JWT-SVID 3.2",
        )
    if len(set(audience)) != len(audience):
        raise JwtSvidError("the audience names somebody twice", "JWT-SVID 3.2")


def _split(token: str) -> tuple[dict[str, Any], dict[str, Any], bytes, bytes]:
    if len(token) > MAX_TOKEN_BYTES:
        raise JwtSvidError(f"longer than {MAX_TOKEN_BYTES} bytes", "JWT-SVID 5.1")
    parts = token.split(".")
    if len(parts) != 3 or not token.isascii():
        raise JwtSvidError("not three parts with dots in between (JWS Compact Serialization)", "JWT-SVID 5.1")
    header, claims, signature = (_decoded(part) for part in parts)
    signed = token.rpartition(".")[0].encode("ascii")
    return _object(header, "the header"), _object(claims, "the claims"), signed, signature


def _decoded(part: str) -> bytes:
    try:
        raw = base64.b64decode(part.encode("ascii") + b"=" * (-len(part) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise JwtSvidError("a part is not base64url without padding", "RFC 7515 2") from error
    if _encoded(raw) != part.encode("ascii"):  # bits that decoders ignore would make many tokens of one
        raise JwtSvidError("a part is not base64url in its only form", "RFC 4648 3.5")
    return raw


def _encoded(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def _object(raw: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except JwtSvidError:
        raise
    except (ValueError, RecursionError) as error:
        raise JwtSvidError(f"{what} are not JSON in UTF-8", "RFC 7519 7.2") from error
    if not isinstance(value, dict):
        raise JwtSvidError(f"{what} are not a JSON object", "RFC 7519 7.2")
    _require_plain(value, _MAX_DEPTH)
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise JwtSvidError("a member appears twice in one object", "RFC 7519 4")
    return found


def _no_constant(name: str) -> float:
    raise JwtSvidError(f"{name} is not JSON", "RFC 8259 6")


def _require_plain(value: object, depth: int) -> None:
    """Refuse what other implementations read differently: deep nesting, huge numbers, half of a surrogate pair."""
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise JwtSvidError("a text is not Unicode", "RFC 8259 8.2")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if abs(value) > 1.7e308 or not math.isfinite(value):
            raise JwtSvidError("a number is out of range", "RFC 8259 6")
    elif isinstance(value, dict | list):
        if depth == 0:
            raise JwtSvidError(f"nested deeper than {_MAX_DEPTH} levels", "RFC 8259 9")
        for item in value if isinstance(value, list) else (*value.keys(), *value.values()):
            _require_plain(item, depth - 1)


def _check_header(header: Mapping[str, Any]) -> tuple[str, str]:
    """Return algorithm and key ID."""
    # "Any header not described here, registered or private, MUST NOT be included in the JWT-SVID JOSE Header."
    if not header.keys() <= _HEADER:
        raise JwtSvidError("a header other than alg, kid and typ", "JWT-SVID 2")
    # "Validators receiving a token with the `alg` parameter set to a different value MUST reject the token."
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise JwtSvidError("'alg' is none of RS, ES or PS with 256, 384 or 512", "JWT-SVID 2.1")
    # "If set, its value MUST be either `JWT` or `JOSE`."
    if "typ" in header and header["typ"] not in _TYPES:
        raise JwtSvidError("'typ' is neither JWT nor JOSE", "JWT-SVID 2.3")
    key_id = header.get("kid")
    if not isinstance(key_id, str) or not key_id:
        raise JwtSvidError("no 'kid': which key signed it can not be told", "JWT-SVID 2.2")
    return algorithm, key_id


def _subject(claims: Mapping[str, Any]) -> SpiffeId:
    subject = claims.get("sub")
    if not isinstance(subject, str):
        raise JwtSvidError("no 'sub'", "JWT-SVID 3.1")
    try:
        identity = SpiffeId.parse(subject)
    except SpiffeIdError as error:
        raise JwtSvidError("'sub' is not a SPIFFE ID", "JWT-SVID 3.1") from error
    if not identity.path:
        raise JwtSvidError("'sub' names a trust domain, not a workload", "SPIFFE-ID 2.2")
    return identity


def _audience(claims: Mapping[str, Any]) -> tuple[str, ...]:
    audience = claims.get("aud")
    audiences = (audience,) if isinstance(audience, str) else audience  # RFC 7519 4.1.3: one may stand alone
    if not isinstance(audiences, tuple | list) or not audiences or not all(isinstance(each, str) for each in audiences):
        raise JwtSvidError("no 'aud'", "JWT-SVID 3.2")
    return tuple(audiences)


def _check_dates(claims: Mapping[str, Any], *, at: datetime) -> datetime:
    """Return when the token ends."""
    # "The `exp` claim MUST be set, and validators MUST reject tokens without this claim."
    expires_at = _date(claims, "exp")
    if expires_at is None:
        raise JwtSvidError("no 'exp'", "JWT-SVID 3.3")
    # RFC 7519 4.1.4: "the current date/time MUST be before the expiration date/time"; some leeway is allowed.
    if at >= expires_at + CLOCK_SKEW:
        raise JwtSvidError(f"expired at {_shown(expires_at)}; it is {_shown(at)} here", "RFC 7519 4.1.4")
    for name in ("nbf", "iat"):
        begins_at = _date(claims, name)
        if begins_at is not None and at < begins_at - CLOCK_SKEW:
            raise JwtSvidError(
                f"{name!r} is {_shown(begins_at)}, in the future; it is {_shown(at)} here", "RFC 7519 4.1.5"
            )
    return expires_at


def _date(claims: Mapping[str, Any], name: str) -> datetime | None:
    value = claims.get(name)
    if value is None and name not in claims:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise JwtSvidError(f"{name!r} is not a number", "RFC 7519 2")
    try:
        return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise JwtSvidError(f"{name!r} is not a date", "RFC 7519 2") from error


def _check_signature(algorithm: str, public_key_der: bytes, signed: bytes, signature: bytes) -> None:
    key = load_der_public_key(public_key_der)
    digest = _HASHES[algorithm[2:]]
    try:
        match algorithm[:2], key:
            case "ES", ec.EllipticCurvePublicKey() if isinstance(key.curve, _CURVES[algorithm]):
                key.verify(_dss_signature(signature, key.curve), signed, ec.ECDSA(digest))
            case "RS", rsa.RSAPublicKey() if key.key_size >= _MIN_RSA_BITS:
                key.verify(signature, signed, padding.PKCS1v15(), digest)
            case "PS", rsa.RSAPublicKey() if key.key_size >= _MIN_RSA_BITS:
                # RFC 7518 3.5: the salt is as long as the digest, and MGF1 uses the same one.
                scheme = padding.PSS(mgf=padding.MGF1(digest), salt_length=digest.digest_size)
                key.verify(signature, signed, scheme, digest)
            case _:
                # Otherwise an attacker could choose how a key is used (RFC 8725 3.1).
                raise JwtSvidError("'alg' is not that of the key which 'kid' names", "RFC 8725 3.1")
    except InvalidSignature as error:
        raise JwtSvidError("the signature does not fit", "RFC 7515 5.2") from error


def _dss_signature(signature: bytes, curve: ec.EllipticCurve) -> bytes:
    """RFC 7518 3.4: R and S as two numbers of the curve's full length; OpenSSL wants them in ASN.1."""
    size = (curve.key_size + 7) // 8
    if len(signature) != 2 * size:
        raise JwtSvidError("the signature has a wrong length", "RFC 7518 3.4")
    return encode_dss_signature(int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big"))


def _shown(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
