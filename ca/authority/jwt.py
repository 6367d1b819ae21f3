"""Signs JWT-SVIDs, and keeps the keys for it fresh.

Which key signs is read from the database for each token, so that all replicas
change over at the same moment.  The keys are P-256 (ES256), encrypted in the
same ``KeyStore`` as those of the hierarchy, and none of them ever signs a
certificate: the two have bundle entries of different use (Trust Domain and
Bundle section 4.2.2).

Blocking: called in the authority's one worker thread.
"""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, assert_never

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ca.authority.errors import AuthorityError, Refusal
from ca.authority.jwt_rotation import (
    LONGEST_TTL,
    SHORTEST_TTL,
    ActivateJwtKey,
    ForgetJwtKey,
    JwtKeyRecord,
    JwtStep,
    PrepareJwtKey,
    next_step,
)
from ca.authority.keys import read_key, write_key
from ca.authority.logs import log
from ca.authority.store import Store
from ca.csr import PrivateKey, new_key
from ca.jwt_svid import JwtSvid, JwtSvidError, check_audience, encode_signed, encode_unsigned
from ca.messages import RefusalCode
from ca.spiffe import SpiffeId

_COORDINATE_BYTES: Final = 32  # P-256
_TOKEN_ID_BYTES: Final = 16
_MAX_STEPS: Final = 8  # in one go; three are enough from any state


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedJwt:
    """A finished token and what the journal has to know of it."""

    token: str
    token_id: str
    issued_at: datetime
    not_after: datetime
    key_id: str

    def __repr__(self) -> str:
        return f"SignedJwt(token_id={self.token_id!r})"  # never the token


class JwtSigner:
    """Signs with the active key.  ``tend`` is to be called now and then, and once before the first token."""

    def __init__(self, *, store: Store, passphrase: bytes, ttl: timedelta, lifetime: timedelta) -> None:
        """``ttl`` is how long a token lives when nothing else is asked for, ``lifetime`` how long one key signs."""
        self._store = store
        self._passphrase = passphrase
        self._ttl = ttl
        self._lifetime = lifetime
        self._loaded: tuple[str, PrivateKey] | None = None

    def sign(self, identity: SpiffeId, audience: tuple[str, ...], *, ttl: timedelta | None, at: datetime) -> SignedJwt:
        """Sign, and judge the result as a peer would before anybody gets it.

        Raises:
            Refusal: the audience or the lifetime is out of bounds, or there is no key.
            StoreError: the database can not be used.
        """
        try:
            check_audience(audience)
        except JwtSvidError as exc:
            raise Refusal(RefusalCode.BAD_REQUEST, str(exc)) from exc
        ttl = self._ttl if ttl is None else ttl
        if not SHORTEST_TTL <= ttl <= LONGEST_TTL:
            raise Refusal(
                RefusalCode.BAD_REQUEST,
                f"a JWT-SVID lives for {SHORTEST_TTL.total_seconds():.0f} to {LONGEST_TTL.total_seconds():.0f} s, "
                f"not for {ttl.total_seconds():g} (JWT-SVID 3.3)",
            )
        key_id, key = self._active()
        issued_at = at.replace(microsecond=0)
        not_after = issued_at + timedelta(seconds=int(ttl.total_seconds()))
        token_id = secrets.token_hex(_TOKEN_ID_BYTES)
        token = _signed(
            key,
            {"alg": "ES256", "kid": key_id, "typ": "JWT"},
            {
                "sub": str(identity),
                "aud": list(audience),
                "exp": int(not_after.timestamp()),
                "iat": int(issued_at.timestamp()),
                "jti": token_id,
            },
        )
        public = _public_der(key)
        JwtSvid.verify(
            token,
            audience=audience[0],
            public_key_of=lambda domain, kid: public if (domain, kid) == (identity.trust_domain, key_id) else None,
            at=at,
        )
        return SignedJwt(token=token, token_id=token_id, issued_at=issued_at, not_after=not_after, key_id=key_id)

    def tend(self, *, at: datetime) -> None:
        """Do what is due: prepare, activate, forget keys; prune the journal.  Only where the leader runs.

        Raises:
            StoreError: the database can not be used.
        """
        for _ in range(_MAX_STEPS):
            keys = self._store.jwt_keys.read()
            step = next_step(keys, lifetime=self._lifetime, at=at)
            if step is None:
                break
            self._do(step, keys, at)
        self._store.jwt_keys.prune(at=at)

    def _do(self, step: JwtStep, seen: Sequence[JwtKeyRecord], at: datetime) -> None:
        match step:
            case PrepareJwtKey():
                self._prepare(seen, at)
            case ActivateJwtKey(key_id):
                self._store.jwt_keys.activate(key_id, at=at)
                log("jwt_key_activated", key_id=key_id)
            case ForgetJwtKey(key_id):
                self._store.jwt_keys.forget(key_id)
                self._store.keys.remove(key_id)
                log("jwt_key_forgotten", key_id=key_id)
            case _:
                assert_never(step)

    def _prepare(self, seen: Sequence[JwtKeyRecord], at: datetime) -> None:
        key = new_key()
        public = _public_der(key)
        key_id = hashlib.sha256(public).hexdigest()[:40]
        # The key first: one that was published and can not be read would make every token wait for an operator.
        write_key(self._store.keys, key_id, key, self._passphrase)
        if self._store.jwt_keys.add(key_id, public, seen=seen, at=at):
            log("jwt_key_prepared", key_id=key_id)
        else:  # another replica was faster
            self._store.keys.remove(key_id)

    def _active(self) -> tuple[str, PrivateKey]:
        key_id = self._store.jwt_keys.active_key_id()
        if key_id is None:
            raise Refusal(RefusalCode.UNAVAILABLE, "the authority has no key for JWT-SVIDs yet", retry_after_s=1.0)
        if self._loaded is None or self._loaded[0] != key_id:
            try:
                self._loaded = key_id, read_key(self._store.keys, key_id, self._passphrase)
            except AuthorityError as exc:
                log("jwt_key_unreadable", key_id=key_id, why=str(exc))
                raise Refusal(RefusalCode.UNAVAILABLE, "the authority can not read its key for JWT-SVIDs") from exc
        return self._loaded


def _signed(key: PrivateKey, header: dict[str, object], claims: dict[str, object]) -> str:
    unsigned = encode_unsigned(header, claims)
    # RFC 7518 3.4: R and S in their full length, one after the other, not in ASN.1.
    numbers = decode_dss_signature(key.sign(unsigned, ec.ECDSA(hashes.SHA256())))
    return encode_signed(unsigned, b"".join(number.to_bytes(_COORDINATE_BYTES, "big") for number in numbers))


def _public_der(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
