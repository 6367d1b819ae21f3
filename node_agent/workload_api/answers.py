"""What each method of the Workload API answers, out of the SVIDs and the trust that the agent has.

Every message is the full state: what is not in it is no longer so (Workload API
4.3, 4.4).  Section numbers are those of the SPIFFE Workload API unless another
document is named.
"""

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final, TypeVar

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import Encoding

from ca.jwk import PublicKey, to_jwk
from ca.jwt_svid import JwtSvid, JwtSvidError, check_audience
from ca.spiffe import SpiffeId
from ca.trust import TrustBundle
from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.identity import Credentials, Identities
from node_agent.identity.trust import TrustStore
from node_agent.model import Workload
from node_agent.workload_api import messages
from node_agent.workload_api.grpc_status import GrpcStatus
from node_agent.workload_api.jwt_svids import JwtDenied, JwtSvids, JwtUnavailable, TooManyTokens
from node_agent.workload_api.protobuf import ProtobufError

_T = TypeVar("_T")

HINT_LABEL: Final = "ringfence.io/svid-hint"


class CallFailed(Exception):
    """A call ends with ``status``; the text is for whoever wrote the program."""

    def __init__(self, status: GrpcStatus, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class Answers:
    """Knows what a workload may have; it is the caller's business which workload it is."""

    def __init__(
        self, *, identities: Identities, trust: TrustStore, jwts: JwtSvids, utc_now: Callable[[], datetime]
    ) -> None:
        self._identities = identities
        self._trust = trust
        self._jwts = jwts
        self._utc_now = utc_now

    async def wait_for_svid(self, workload: Workload) -> None:
        """Give the SVID of a workload that has only just begun a moment to arrive.

        Raises:
            CallFailed: it did not.
        """
        try:
            await self._identities.wait_for(workload.identity)
        except ConnectionFailure as error:
            is_revoked = error.reason is CloseReason.IDENTITY_REVOKED
            status = GrpcStatus.PERMISSION_DENIED if is_revoked else GrpcStatus.UNAVAILABLE
            raise CallFailed(status, error.detail) from error

    def x509_svid(self, workload: Workload) -> bytes:
        """FetchX509SVID: the workload's one identity, with its key."""
        credentials = self._credentials(workload)
        own = credentials.own
        svid = messages.X509Svid(
            spiffe_id=str(credentials.identity),
            chain_der=b"".join(certificate.public_bytes(Encoding.DER) for certificate in own.chain),
            key_der=own.key.private_bytes(
                Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
            bundle_der=_x509(self._trust.bundles[self._trust.trust_domain]),
            hint=workload.labels.get(HINT_LABEL, ""),
        )
        bundles = self._x509_bundles()
        del bundles[_id(self._trust.trust_domain)]
        return messages.x509_svid_response([svid], bundles)

    def x509_bundles(self, workload: Workload) -> bytes:
        """FetchX509Bundles: every trust domain that we trust, each with its own roots."""
        self._require_good(workload.identity)
        return messages.x509_bundles_response(self._x509_bundles())

    def jwt_bundles(self, workload: Workload) -> bytes:
        """FetchJWTBundles: "a standard JWK Set ... containing the JWT-SVID signing keys" of each (6.2.2)."""
        self._require_good(workload.identity)
        return messages.jwt_bundles_response({_id(name): _jwks(each) for name, each in self._trust.bundles.items()})

    async def jwt_svid(self, workload: Workload, request: bytes) -> bytes:
        """FetchJWTSVID: a token of the workload's identity for whoever it names."""
        wish = _parsed(messages.JwtSvidRequest.decode, request)
        try:
            check_audience(wish.audience)
        except JwtSvidError as error:
            raise CallFailed(GrpcStatus.INVALID_ARGUMENT, str(error)) from error
        if wish.spiffe_id and wish.spiffe_id != str(workload.identity):
            # 6.2.1: "not authorized for the specific identity requested ... "PermissionDenied""
            raise CallFailed(GrpcStatus.PERMISSION_DENIED, "the caller has not the identity that it asks for")
        self._require_good(workload.identity)
        try:
            token = await self._jwts.get(workload.identity, wish.audience)
        except JwtDenied as error:
            raise CallFailed(GrpcStatus.PERMISSION_DENIED, str(error)) from error
        except TooManyTokens as error:
            raise CallFailed(GrpcStatus.RESOURCE_EXHAUSTED, str(error)) from error
        except JwtUnavailable as error:
            raise CallFailed(GrpcStatus.UNAVAILABLE, str(error)) from error
        self._require_good(workload.identity)  # it may have been revoked while the CA was answering
        hint = workload.labels.get(HINT_LABEL, "")
        return messages.jwt_svid_response([messages.JwtSvid(spiffe_id=str(workload.identity), token=token, hint=hint)])

    def validate_jwt_svid(self, workload: Workload, request: bytes) -> bytes:
        """ValidateJWTSVID: judge a token that was presented to the caller."""
        self._require_good(workload.identity)
        wish = _parsed(messages.ValidateJwtSvidRequest.decode, request)
        if not wish.audience or not wish.token:
            raise CallFailed(GrpcStatus.INVALID_ARGUMENT, "audience and svid are mandatory (Workload API 6.2.3)")
        try:
            found = JwtSvid.verify(
                wish.token, audience=wish.audience, public_key_of=self._trust_key, at=self._utc_now()
            )
        except JwtSvidError as error:
            raise CallFailed(GrpcStatus.INVALID_ARGUMENT, f"not a valid JWT-SVID: {error}") from error
        if self._trust.revocation_of(found.identity) is not None:
            raise CallFailed(GrpcStatus.INVALID_ARGUMENT, "not a valid JWT-SVID: its identity is revoked")
        return messages.validate_jwt_svid_response(str(found.identity), found.claims)

    def _x509_bundles(self) -> dict[str, bytes]:
        """By trust domain; one without roots is left out, which says the same (4.4): libraries take "" for damage."""
        return {_id(name): _x509(bundle) for name, bundle in self._trust.bundles.items() if bundle.x509_der}

    def _credentials(self, workload: Workload) -> Credentials:
        self._require_good(workload.identity)
        credentials = self._identities.current(workload.identity)
        if credentials is None:
            raise CallFailed(GrpcStatus.UNAVAILABLE, f"there is no valid SVID of {workload.identity} now")
        self._require_good(workload.identity, serial=credentials.serial)
        return credentials

    def _require_good(self, identity: SpiffeId, *, serial: int = 0) -> None:
        """Whoever is revoked gets nothing, and is told to stop using what it has (5.2.1)."""
        try:
            self._trust.require_trusted(identity, serial)
        except ConnectionFailure as error:
            raise CallFailed(GrpcStatus.PERMISSION_DENIED, error.detail) from error

    def _trust_key(self, trust_domain: str, key_id: str) -> bytes | None:
        return public_key_of(self._trust, trust_domain, key_id)


def public_key_of(trust: TrustStore, trust_domain: str, key_id: str) -> bytes | None:
    """The key for JWT-SVIDs of a trust domain by its ``kid``, in DER; None if there is none."""
    bundle = trust.bundles.get(trust_domain)
    keys = () if bundle is None else bundle.jwt_keys
    return next((key.public_key_der for key in keys if key.key_id == key_id), None)


def require_empty(request: bytes) -> None:
    """Check a request of a method that has no parameters; unknown fields are a newer client's."""
    _parsed(messages.require_message, request)


def _parsed(parse: Callable[[bytes], _T], request: bytes) -> _T:
    try:
        return parse(request)
    except ProtobufError as error:
        raise CallFailed(GrpcStatus.INVALID_ARGUMENT, f"the request is malformed: {error}") from error


def _id(trust_domain: str) -> str:
    """Bundles are "keyed by the SPIFFE ID of the trust domain" (5.1)."""
    return str(SpiffeId(trust_domain, ""))


def _x509(bundle: TrustBundle) -> bytes:
    return b"".join(bundle.x509_der)


def _jwks(bundle: TrustBundle) -> bytes:
    """RFC 7517 section 5.  Without ``use``: "jwt-svid" is SPIFFE's, and this is for readers who do not know it."""
    keys: list[Mapping[str, str]] = []
    for each in bundle.jwt_keys:
        key = serialization.load_der_public_key(each.public_key_der)
        if isinstance(key, PublicKey):
            keys.append({"kid": each.key_id, **to_jwk(key)})
    return json.dumps({"keys": keys}).encode()
