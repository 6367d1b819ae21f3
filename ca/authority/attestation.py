"""Is that really the node it says it is?

Sans-I/O.  Each way to prove it is one function that returns ``Attested`` or
raises ``Refusal``:

    by_token        a one-time join token, bound to a node name by the operator
    by_certificate  the node certificate that an earlier attestation bought

The token is stored as a SHA-256 hash.  It has 256 random bits, so that no slow
hash is needed: there is nothing to guess.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from ca.authority.errors import Refusal
from ca.authority.records import TokenRecord
from ca.messages import RefusalCode
from ca.spiffe import SpiffeId, SpiffeIdError

TOKEN_RANDOM_BYTES: Final = 32
_TOKEN_PREFIX: Final = "rfjoin-"  # lets secret scanners recognise a leaked one
_RENEW: Final = "make a new one with: ringfence ca token"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attested:
    """A node that proved itself.

    ``token_hash`` is the token that has to be used up in the same transaction
    that journals the certificate; until then nothing has been granted.
    """

    identity: SpiffeId
    node: str
    method: str
    token_hash: bytes | None = None


def format_token(random_bytes: bytes) -> str:
    """Write a token as text that survives copying: ``rfjoin-`` and hex."""
    return f"{_TOKEN_PREFIX}{random_bytes.hex()}"


def token_hash(token: str) -> bytes:
    """What the store keeps instead of the token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def by_token(*, trust_domain: str, node: str, found: TokenRecord | None, at: datetime) -> Attested:
    """Judge a join token that the store was asked for by its hash.

    Raises:
        Refusal: ``token_invalid``; the text says why only to whoever knows the token.
    """
    identity = _node_identity(trust_domain, node)
    if found is None:
        raise _token(f"this authority knows no such join token; {_RENEW} --node {node}")
    if found.node != node:
        raise _token("the join token was made for another node")
    if found.used_at is not None:
        raise _token(f"the join token was used already, at {_shown(found.used_at)}; {_RENEW} --node {node}")
    if at >= found.expires_at:
        raise _token(
            f"the join token expired at {_shown(found.expires_at)}, and it is {_shown(at)} here; {_RENEW} --node {node}"
        )
    return Attested(identity=identity, node=node, method="join_token", token_hash=found.token_hash)


def by_certificate(*, trust_domain: str, presented: SpiffeId | None) -> Attested:
    """Judge the identity that TLS proved, or None where no certificate was presented.

    Raises:
        Refusal: ``unauthenticated``.
    """
    if presented is None:
        raise Refusal(RefusalCode.UNAUTHENTICATED, "a node certificate is needed and none was presented")
    node = presented.node_name
    if presented.trust_domain != trust_domain or node is None:
        raise Refusal(
            RefusalCode.UNAUTHENTICATED,
            f"the certificate of {presented} is not a node certificate of {trust_domain}: only agents may ask",
        )
    return Attested(identity=presented, node=node, method="node_certificate")


def _node_identity(trust_domain: str, node: str) -> SpiffeId:
    try:
        return SpiffeId.node(trust_domain, node)
    except SpiffeIdError as exc:
        raise Refusal(RefusalCode.BAD_REQUEST, f"the node name is not usable: {exc}") from exc


def _token(text: str) -> Refusal:
    return Refusal(RefusalCode.TOKEN_INVALID, text)


def _shown(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
