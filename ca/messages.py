"""What an agent and the CA say to each other.

TLS 1.3 on port 15012, ALPN ``ringfence-ca/1``.  One request, one reply, in
order.  The CA proves itself with ``SpiffeId.authority``, under the roots that
the agent was configured with.  The agent proves itself with its node
certificate, and only ``AttestWithToken``, ``Attest`` and ``GetBundle`` are
answered without one.

    AttestWithToken -> Issued (one certificate: the node's) | Refused
    Attest          -> Issued (one certificate: the node's) | Refused
    RenewNode       -> Issued (one certificate: the node's) | Refused
    SignWorkloads   -> Issued (one item a request, in the same order) | Refused
    SignJwt         -> JwtIssued | Refused
    GetBundle       -> Bundle | Refused
    WatchTrust      -> Trust, at once or when it changes, within 25 s | Refused

On the wire a message is a map with the key ``type``.  Unknown keys are
ignored, so that a newer side may add some; an unknown type, a missing key or a
value of the wrong type is a ``WireError``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Final, Self

from ca import fields as read
from ca.errors import WireError
from ca.jwt_svid import MAX_AUDIENCE_CHARACTERS, MAX_AUDIENCES, MAX_TOKEN_BYTES
from ca.spiffe import SpiffeId
from ca.trust import Trust

ALPN: Final = "ringfence-ca/1"
DEFAULT_PORT: Final = 15012
MAX_REQUESTS: Final = 500  # in one SignWorkloads; the replies then still fit a frame
_MAX_CSR_BYTES: Final = 16 * 1024  # a P-256 request with a 2048-byte ID is ~2.4 KiB
_MAX_EVIDENCE_BYTES: Final = 12 * 1024  # with the largest CSR it still fits what an unknown peer may send
_MAX_PLUGIN: Final = 64
_MAX_CERTIFICATE_BYTES: Final = 64 * 1024
_MAX_CHAIN: Final = 8
_MAX_ROOTS: Final = 64
_DIGEST_BYTES: Final = 32


class RefusalCode(StrEnum):
    """Why the CA said no; the agent decides by it when to ask again."""

    TOKEN_INVALID = "token_invalid"  # unknown, used, expired, or another node's
    ATTESTATION_REFUSED = "attestation_refused"  # the evidence does not prove the node, or the method is not enabled
    UNAUTHENTICATED = "unauthenticated"  # no node certificate, or not one of ours
    REVOKED = "revoked"
    NOT_SCHEDULED = "not_scheduled"  # the registry places no such workload on this node (yet)
    BAD_CSR = "bad_csr"
    BAD_REQUEST = "bad_request"
    RATE_LIMITED = "rate_limited"  # this node or address asked too often; again after retry_after_s
    UNAVAILABLE = "unavailable"  # overloaded, starting, or its registry is not loaded
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestWithToken:
    """A new agent buys its node certificate with a one-time join token."""

    TYPE: ClassVar[str] = "attest_with_token"
    node: str
    token: str
    csr_der: bytes

    def __repr__(self) -> str:
        return f"AttestWithToken(node={self.node!r})"  # never the token

    def to_wire(self) -> dict[str, Any]:
        return {"type": self.TYPE, "node": self.node, "token": self.token, "csr": self.csr_der}

    @classmethod
    def from_wire(cls, fields: Mapping[str, Any]) -> Self:
        return cls(
            node=read.text(fields, "node"),
            token=read.text(fields, "token"),
            csr_der=read.blob(fields, "csr", _MAX_CSR_BYTES),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Attest:
    """A new agent proves its node in one of the ways that the CA has enabled.

    ``plugin`` names the way, ``evidence`` is whatever that way wants: secret, and opaque to all others.
    """

    TYPE: ClassVar[str] = "attest"
    plugin: str
    node: str
    evidence: bytes
    csr_der: bytes

    def __repr__(self) -> str:
        return f"Attest(plugin={self.plugin!r}, node={self.node!r})"  # never the evidence

    def to_wire(self) -> dict[str, Any]:
        return {
            "type": self.TYPE,
            "plugin": self.plugin,
            "node": self.node,
            "evidence": self.evidence,
            "csr": self.csr_der,
        }

    @classmethod
    def from_wire(cls, fields: Mapping[str, Any]) -> Self:
        return cls(
            plugin=read.text(fields, "plugin", _MAX_PLUGIN),
            node=read.text(fields, "node"),
            evidence=read.blob(fields, "evidence", _MAX_EVIDENCE_BYTES),
            csr_der=read.blob(fields, "csr", _MAX_CSR_BYTES),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewNode:
    """An agent renews the node certificate that it presents; its identity stays the same."""

    TYPE: ClassVar[str] = "renew_node"
    csr_der: bytes

    def to_wire(self) -> dict[str, Any]:
        return {"type": self.TYPE, "csr": self.csr_der}

    @classmethod
    def from_wire(cls, fields: Mapping[str, Any]) -> Self:
        return cls(csr_der=read.blob(fields, "csr", _MAX_CSR_BYTES))


@dataclass(frozen=True, slots=True, kw_only=True)
class SignRequest:
    """One identity that a ``SignWorkloads`` asks for, with the key to bind to it."""

    identity: SpiffeId
    csr_der: bytes

    def to_wire(self) -> dict[str, Any]:
        return {"identity": str(self.identity), "csr": self.csr_der}

    @classmethod
    def from_wire(cls, fields: Mapping[str, Any]) -> Self:
        return cls(identity=read.identity(fields), csr_der=read.blob(fields, "csr", _MAX_CSR_BYTES))


@dataclass(frozen=True, slots=True, kw_only=True)
class SignWorkloads:
    """An agent asks for SVIDs of workloads on its node."""

    TYPE: ClassVar[str] = "sign_workloads"
    requests: tuple[SignRequest, ...]

    def to_wire(self) -> dict[str, Any]:
        return {"type": self.TYPE, "requests": [request.to_wire() for request in self.requests]}

    @classmethod
    def from_wire(cls, fields: Mapping[str, Any]) -> Self:
        items = read.items(fields, "requests", MAX_REQUESTS)
        return cls(requests=tuple(SignRequest.from_wire(read.mapping(item, "requests")) for item in items))


@dataclass(frozen=True, slots=True, kw_only=True)
class SignJwt:
    """An agent asks for a JWT-SVID of a workload on its node; ``ttl_s`` 0 leaves its life to the CA."""

    TYPE: ClassVar[str] = "sign_jwt"
    identity: SpiffeId
    audience: tuple[str, ...]
    ttl_s: float = 0.0

    def to_wire(self) -> dict[str, Any]:
        return {
            "type": self.TYPE,
            "identity": str(self.identity),
            "audience": list(self.audience),
            "ttl_s": self.ttl_s,
        }

    @classmethod
    def from_wire(cls, fields: Mapping[str, Any]) -> Self:
        audience = read.items(fields, "audience", MAX_AUDIENCES)
        if not all(isinstance(each, str) and len(each) <= MAX_AUDIENCE_CHARACTERS for each in audience):
            raise WireError(f"'audience' has to hold texts of at most {MAX_AUDIENCE_CHARACTERS} characters")
        return cls(identity=read.identity(fields), audience=tuple(audience), ttl_s=read.seconds(fields, "ttl_s"))


@dataclass(frozen=True, slots=True, kw_only=True)
class GetBundle:
    """Anybody asks for the trust bundle; what comes back is only as good as the connection."""

    TYPE: ClassVar[str] = "get_bundle"

    def to_wire(self) -> dict[str, Any]:
        return {"type": self.TYPE}

    @classmethod
    def from_wire(cls, fields: Mapping[str, Any]) -> Self:
        return cls()


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchTrust:
    """An agent says what trust it has in force, and waits for the next.

    ``version`` 0 is none.  It is the acknowledgement: everything of that
    version decides on every connection of the agent.  ``digest`` is that of
    the ``Trust`` in force; the CA answers at once when either differs from its
    own, otherwise when its own changes, or after 25 s with the same.
    """

    TYPE: ClassVar[str] = "watch_trust"
    version: int
    digest: bytes = b""

    def to_wire(self) -> dict[str, Any]:
        wire: dict[str, Any] = {"type": self.TYPE, "version": self.version}
        if self.digest:
            wire["digest"] = self.digest
        return wire

    @classmethod
    def from_wire(cls, fields: Mapping[str, Any]) -> Self:
        return cls(
            version=read.sequence(fields, "version"),
            digest=b"" if fields.get("digest") is None else read.blob(fields, "digest", _DIGEST_BYTES),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """No, and why.  ``retry_after_s`` is 0.0 when the CA has no wish."""

    TYPE: ClassVar[str] = "refused"
    code: RefusalCode
    text: str
    retry_after_s: float = 0.0

    def to_wire(self) -> dict[str, Any]:
        return {"type": self.TYPE, "code": str(self.code), "text": self.text, "retry_after_s": self.retry_after_s}

    @classmethod
    def from_wire(cls, fields: Mapping[str, Any]) -> Self:
        try:
            code = RefusalCode(read.text(fields, "code"))
        except ValueError:
            code = RefusalCode.INTERNAL  # a newer CA may know more reasons; no is no
        return cls(code=code, text=read.text(fields, "text"), retry_after_s=read.seconds(fields, "retry_after_s"))


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedCertificate:
    """A chain, leaf first and without the root, or the reason why there is none."""

    identity: SpiffeId
    chain_der: tuple[bytes, ...] = ()
    error: Refused | None = None

    def __post_init__(self) -> None:
        if bool(self.chain_der) == (self.error is not None):
            raise WireError(f"{self.identity}: has to carry either a chain or an error")

    def to_wire(self) -> dict[str, Any]:
        wire: dict[str, Any] = {"identity": str(self.identity), "chain": list(self.chain_der)}
        if self.error is not None:
            wire["error"] = self.error.to_wire()
        return wire

    @classmethod
    def from_wire(cls, fields: Mapping[str, Any]) -> Self:
        error = fields.get("error")
        return cls(
            identity=read.identity(fields),
            chain_der=read.blobs(fields, "chain", _MAX_CHAIN, _MAX_CERTIFICATE_BYTES),
            error=None if error is None else Refused.from_wire(read.mapping(error, "error")),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """The certificates that were asked for, and the roots that peers are to be judged by."""

    TYPE: ClassVar[str] = "issued"
    certificates: tuple[IssuedCertificate, ...]
    bundle_der: tuple[bytes, ...]
    trust_domain: str

    def to_wire(self) -> dict[str, Any]:
        return {
            "type": self.TYPE,
            "certificates": [certificate.to_wire() for certificate in self.certificates],
            "bundle": list(self.bundle_der),
            "trust_domain": self.trust_domain,
        }

    @classmethod
    def from_wire(cls, fields: Mapping[str, Any]) -> Self:
        items = read.items(fields, "certificates", MAX_REQUESTS)
        return cls(
            certificates=tuple(IssuedCertificate.from_wire(read.mapping(item, "certificates")) for item in items),
            bundle_der=read.blobs(fields, "bundle", _MAX_ROOTS, _MAX_CERTIFICATE_BYTES),
            trust_domain=read.text(fields, "trust_domain"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """The trust bundle: roots in DER.  ``sequence`` only ever grows; no roots means trust nothing."""

    TYPE: ClassVar[str] = "bundle"
    trust_domain: str
    roots_der: tuple[bytes, ...]
    sequence: int
    refresh_hint_s: float

    def to_wire(self) -> dict[str, Any]:
        return {
            "type": self.TYPE,
            "trust_domain": self.trust_domain,
            "roots": list(self.roots_der),
            "sequence": self.sequence,
            "refresh_hint_s": self.refresh_hint_s,
        }

    @classmethod
    def from_wire(cls, fields: Mapping[str, Any]) -> Self:
        return cls(
            trust_domain=read.text(fields, "trust_domain"),
            roots_der=read.blobs(fields, "roots", _MAX_ROOTS, _MAX_CERTIFICATE_BYTES),
            sequence=read.sequence(fields, "sequence"),
            refresh_hint_s=read.seconds(fields, "refresh_hint_s"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtIssued:
    """A JWT-SVID, in JWS Compact Serialization."""

    TYPE: ClassVar[str] = "jwt_issued"
    token: str

    def __repr__(self) -> str:
        return "JwtIssued()"  # never the token

    def to_wire(self) -> dict[str, Any]:
        return {"type": self.TYPE, "token": self.token}

    @classmethod
    def from_wire(cls, fields: Mapping[str, Any]) -> Self:
        return cls(token=read.text(fields, "token", MAX_TOKEN_BYTES))


Request = AttestWithToken | Attest | RenewNode | SignWorkloads | SignJwt | GetBundle | WatchTrust
Reply = Issued | JwtIssued | Bundle | Trust | Refused


def parse_request(fields: Mapping[str, Any]) -> Request:
    """Read what an agent sent.  Raises WireError."""
    match read.text(fields, "type"):
        case AttestWithToken.TYPE:
            return AttestWithToken.from_wire(fields)
        case Attest.TYPE:
            return Attest.from_wire(fields)
        case RenewNode.TYPE:
            return RenewNode.from_wire(fields)
        case SignWorkloads.TYPE:
            return SignWorkloads.from_wire(fields)
        case SignJwt.TYPE:
            return SignJwt.from_wire(fields)
        case GetBundle.TYPE:
            return GetBundle.from_wire(fields)
        case WatchTrust.TYPE:
            return WatchTrust.from_wire(fields)
        case other:
            raise WireError(f"unknown request type {other[:40]!r}")


def parse_reply(fields: Mapping[str, Any]) -> Reply:
    """Read what the CA sent.  Raises WireError."""
    match read.text(fields, "type"):
        case Issued.TYPE:
            return Issued.from_wire(fields)
        case JwtIssued.TYPE:
            return JwtIssued.from_wire(fields)
        case Bundle.TYPE:
            return Bundle.from_wire(fields)
        case Trust.TYPE:
            return Trust.from_wire(fields)
        case Refused.TYPE:
            return Refused.from_wire(fields)
        case other:
            raise WireError(f"unknown reply type {other[:40]!r}")
