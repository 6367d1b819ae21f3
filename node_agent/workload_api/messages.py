"""The messages of the SPIFFE Workload API that cross our socket: replies are written, requests are read.

Sans-I/O.  Field numbers are those of workloadapi.proto in the SPIFFE
standards; all values are what the standard names them, certificates and
bundles in DER, one after the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from node_agent.workload_api import protobuf


@dataclass(frozen=True, slots=True, kw_only=True)
class X509Svid:
    """Message X509SVID: one identity with its key.  ``key_der`` is PKCS #8 in clear."""

    spiffe_id: str
    chain_der: bytes
    key_der: bytes
    bundle_der: bytes
    hint: str = ""

    def __repr__(self) -> str:
        return f"X509Svid(spiffe_id={self.spiffe_id!r})"  # never the key

    def encode(self) -> bytes:
        return (
            protobuf.text_field(1, self.spiffe_id)
            + protobuf.blob_field(2, self.chain_der)
            + protobuf.blob_field(3, self.key_der)
            + protobuf.blob_field(4, self.bundle_der)
            + _hint(5, self.hint)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtSvid:
    """Message JWTSVID: a token for one identity."""

    spiffe_id: str
    token: str
    hint: str = ""

    def __repr__(self) -> str:
        return f"JwtSvid(spiffe_id={self.spiffe_id!r})"  # never the token

    def encode(self) -> bytes:
        return protobuf.text_field(1, self.spiffe_id) + protobuf.text_field(2, self.token) + _hint(3, self.hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtSvidRequest:
    """Message JWTSVIDRequest; ``spiffe_id`` is empty when every identity is asked for."""

    audience: tuple[str, ...]
    spiffe_id: str = ""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises ProtobufError."""
        audience: list[str] = []
        spiffe_id = ""
        for number, value in protobuf.blobs(data):
            if number == 1:
                audience.append(protobuf.text(value))
            elif number == 2:
                spiffe_id = protobuf.text(value)
        return cls(audience=tuple(audience), spiffe_id=spiffe_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateJwtSvidRequest:
    """Message ValidateJWTSVIDRequest."""

    audience: str
    token: str

    def __repr__(self) -> str:
        return f"ValidateJwtSvidRequest(audience={self.audience!r})"  # never the token

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises ProtobufError."""
        audience = token = ""
        for number, value in protobuf.blobs(data):
            if number == 1:
                audience = protobuf.text(value)
            elif number == 2:
                token = protobuf.text(value)
        return cls(audience=audience, token=token)


def require_message(data: bytes) -> None:
    """Check one of the requests that have no fields; raises ProtobufError."""
    for _ in protobuf.blobs(data):
        pass


def x509_svid_response(svids: Sequence[X509Svid], federated: Mapping[str, bytes]) -> bytes:
    """Message X509SVIDResponse; ``federated`` are DER bundles by the SPIFFE ID of their trust domain."""
    encoded = b"".join(protobuf.blob_field(1, svid.encode()) for svid in svids)
    return encoded + _map(3, federated)


def x509_bundles_response(bundles: Mapping[str, bytes]) -> bytes:
    """Message X509BundlesResponse; DER bundles by the SPIFFE ID of their trust domain."""
    return _map(2, bundles)


def jwt_svid_response(svids: Sequence[JwtSvid]) -> bytes:
    """Message JWTSVIDResponse."""
    return b"".join(protobuf.blob_field(1, svid.encode()) for svid in svids)


def jwt_bundles_response(bundles: Mapping[str, bytes]) -> bytes:
    """Message JWTBundlesResponse; JWK Sets (RFC 7517) by the SPIFFE ID of their trust domain."""
    return _map(1, bundles)


def validate_jwt_svid_response(spiffe_id: str, claims: Mapping[str, Any]) -> bytes:
    """Message ValidateJWTSVIDResponse.

    ``claims`` is what JSON can say; its numbers become doubles (google.protobuf.Struct has no others).
    """
    return protobuf.text_field(1, spiffe_id) + protobuf.blob_field(2, _struct(claims))


def _hint(number: int, hint: str) -> bytes:
    return protobuf.text_field(number, hint) if hint else b""


def _map(number: int, entries: Mapping[str, bytes]) -> bytes:
    return b"".join(
        protobuf.blob_field(number, protobuf.text_field(1, key) + protobuf.blob_field(2, value))
        for key, value in entries.items()
    )


def _struct(fields: Mapping[str, Any]) -> bytes:
    """Message google.protobuf.Struct."""
    return b"".join(
        protobuf.blob_field(1, protobuf.text_field(1, key) + protobuf.blob_field(2, _value(value)))
        for key, value in fields.items()
    )


def _value(value: Any) -> bytes:
    """Message google.protobuf.Value: a member of a oneof is written also when it has its default value."""
    match value:
        case None:
            return protobuf.varint_field(1, 0)
        case bool():
            return protobuf.varint_field(4, int(value))
        case int() | float():
            return protobuf.double_field(2, float(value))
        case str():
            return protobuf.text_field(3, value)
        case Mapping():
            return protobuf.blob_field(5, _struct(value))
        case _:
            return protobuf.blob_field(6, b"".join(protobuf.blob_field(1, _value(item)) for item in value))
