"""What an agent has to know to judge peers: one value, with one version.

``Trust`` is what the CA hands out and what an agent has in force.  The first
bundle is that of the own trust domain, the others are federated; each vouches
for its own trust domain only, and they are never merged (SPIFFE Federation
section 5).

``version`` is the CA's count of changes.  After a CA was restored from a
backup the same number may stand for something else; ``digest`` tells the two
apart.

Sans-I/O.  On the wire everything is a map; times are whole seconds since 1970.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from typing import Any, ClassVar, Final, Self

from ca import fields as read
from ca.errors import WireError
from ca.spiffe import SpiffeId, SpiffeIdError
from ca.wire import pack

MAX_BUNDLES: Final = 64  # our own trust domain and 63 others
MAX_ROOTS: Final = 64  # of one trust domain
MAX_JWT_KEYS: Final = 64  # of one trust domain
MAX_REVOCATIONS: Final = 4096
_MAX_CERTIFICATE_BYTES: Final = 64 * 1024
_MAX_KEY_BYTES: Final = 2048  # an RSA key of 8192 bits is ~1 KiB
_MAX_KEY_ID: Final = 256
_MAX_WHY: Final = 512
_SERIAL_BYTES: Final = 20  # RFC 5280 4.1.2.2: at most 20 octets
_MAX_SERIALS_BYTES: Final = 32_768 * _SERIAL_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtKey:
    """One public key that JWT-SVIDs are verified with; ``public_key_der`` is SubjectPublicKeyInfo."""

    key_id: str
    public_key_der: bytes

    def to_wire(self) -> dict[str, Any]:
        return {"kid": self.key_id, "key": self.public_key_der}

    @classmethod
    def from_wire(cls, fields: Mapping[str, Any]) -> Self:
        key_id = read.text(fields, "kid")
        if not 0 < len(key_id) <= _MAX_KEY_ID:
            raise WireError(f"'kid' has to be 1 to {_MAX_KEY_ID} characters")
        return cls(key_id=key_id, public_key_der=read.blob(fields, "key", _MAX_KEY_BYTES))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustBundle:
    """The roots and JWT keys of one trust domain.

    ``sequence`` only ever grows; no roots means trust nothing (Trust Domain
    and Bundle sections 4.1.2 and 4.2.1).
    """

    trust_domain: str
    sequence: int
    refresh_hint_s: float
    x509_der: tuple[bytes, ...]
    jwt_keys: tuple[JwtKey, ...] = ()

    def to_wire(self) -> dict[str, Any]:
        return {
            "trust_domain": self.trust_domain,
            "sequence": self.sequence,
            "refresh_hint_s": self.refresh_hint_s,
            "x509": list(self.x509_der),
            "jwt": [key.to_wire() for key in self.jwt_keys],
        }

    @classmethod
    def from_wire(cls, fields: Mapping[str, Any]) -> Self:
        trust_domain = read.text(fields, "trust_domain")
        try:
            SpiffeId.authority(trust_domain)
        except SpiffeIdError as error:
            raise WireError(f"'trust_domain': {error}") from error
        keys = read.items(fields, "jwt", MAX_JWT_KEYS)
        return cls(
            trust_domain=trust_domain,
            sequence=read.sequence(fields, "sequence"),
            refresh_hint_s=read.seconds(fields, "refresh_hint_s"),
            x509_der=read.blobs(fields, "x509", MAX_ROOTS, _MAX_CERTIFICATE_BYTES),
            jwt_keys=tuple(JwtKey.from_wire(read.mapping(key, "jwt")) for key in keys),
        )


class RevocationKind(StrEnum):
    """What ``Revocation.value`` names."""

    SERIAL = "serial"  # one certificate: 40 hexadecimal digits
    IDENTITY = "identity"  # a SPIFFE ID: every certificate of it, and no new ones
    NODE = "node"  # a node's name: the certificates that it was issued, and no new ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """Something that is no longer to be trusted, since ``at``, because of ``why`` (for people).

    ``until`` is when the last certificate that it covers has expired; None
    when it stands until it is undone.  ``serials`` are the certificates that
    the revoked node was issued; empty for the other kinds.
    """

    kind: RevocationKind
    value: str
    at: datetime
    until: datetime | None
    why: str
    serials: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.kind is RevocationKind.SERIAL:
            serial_of(self.value)
        elif self.kind is RevocationKind.IDENTITY:
            SpiffeId.parse(self.value)

    def to_wire(self) -> dict[str, Any]:
        wire: dict[str, Any] = {
            "kind": str(self.kind),
            "value": self.value,
            "at": _seconds(self.at),
            "until": None if self.until is None else _seconds(self.until),
            "why": self.why,
        }
        if self.serials:  # one blob: a node of 500 workloads has a thousand of them
            wire["serials"] = b"".join(serial.to_bytes(_SERIAL_BYTES, "big") for serial in self.serials)
        return wire

    @classmethod
    def from_wire(cls, fields: Mapping[str, Any]) -> Self:
        try:
            return cls(
                kind=RevocationKind(read.text(fields, "kind")),
                value=read.text(fields, "value"),
                at=_time(read.sequence(fields, "at")),
                until=None if fields.get("until") is None else _time(read.sequence(fields, "until")),
                why=read.text(fields, "why")[:_MAX_WHY],
                serials=_serials(fields),
            )
        except WireError:
            raise
        except ValueError as error:  # a kind, a serial or an identity that is none
            raise WireError(f"a revocation: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Everything that decides whom an agent believes; the first bundle is the own trust domain's."""

    TYPE: ClassVar[str] = "trust"
    version: int
    bundles: tuple[TrustBundle, ...]
    revocations: tuple[Revocation, ...] = ()

    def __post_init__(self) -> None:
        if not self.bundles:
            raise WireError("trust without the bundle of the own trust domain")
        names = [bundle.trust_domain for bundle in self.bundles]
        if len(set(names)) != len(names):  # Trust Domain and Bundle: duplicate keys are rejected
            raise WireError("two bundles of one trust domain")

    @property
    def own(self) -> TrustBundle:
        """The bundle of the own trust domain."""
        return self.bundles[0]

    @property
    def digest(self) -> bytes:
        """Of everything in it: two equal digests are the same trust."""
        return sha256(pack(self.to_wire())).digest()

    def to_wire(self) -> dict[str, Any]:
        return {
            "type": self.TYPE,
            "version": self.version,
            "bundles": [bundle.to_wire() for bundle in self.bundles],
            "revocations": [revocation.to_wire() for revocation in self.revocations],
        }

    @classmethod
    def from_wire(cls, fields: Mapping[str, Any]) -> Self:
        bundles = read.items(fields, "bundles", MAX_BUNDLES)
        revocations = read.items(fields, "revocations", MAX_REVOCATIONS)
        return cls(
            version=read.sequence(fields, "version"),
            bundles=tuple(TrustBundle.from_wire(read.mapping(item, "bundles")) for item in bundles),
            revocations=tuple(Revocation.from_wire(read.mapping(item, "revocations")) for item in revocations),
        )


def serial_of(text: str) -> int:
    """Read a serial number in hexadecimal, as the journal, ``openssl`` and browsers write it.

    Raises:
        ValueError: it is none.
    """
    digits = text.replace(":", "").lower().removeprefix("0x")
    try:
        serial = int(digits, 16) if digits.isalnum() else 0
    except ValueError:
        serial = 0
    if not 0 < serial < 1 << (8 * _SERIAL_BYTES):
        raise ValueError(f"{text[:80]!r} is not a serial number: 1 to 40 hexadecimal digits, colons allowed")
    return serial


def serial_hex(serial: int) -> str:
    """Write a serial number as the journal does: 40 hexadecimal digits."""
    return f"{serial:040x}"


def _serials(fields: Mapping[str, Any]) -> tuple[int, ...]:
    if fields.get("serials") is None:
        return ()
    data = read.blob(fields, "serials", _MAX_SERIALS_BYTES)
    if len(data) % _SERIAL_BYTES:
        raise WireError(f"'serials' has to be {_SERIAL_BYTES} bytes each")
    return tuple(
        int.from_bytes(data[start : start + _SERIAL_BYTES], "big") for start in range(0, len(data), _SERIAL_BYTES)
    )


def _seconds(at: datetime) -> int:
    return int(at.timestamp())


def _time(seconds: int) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError, ValueError) as error:
        raise WireError(f"{seconds} is not a time") from error
