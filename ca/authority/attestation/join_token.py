"""A node proves itself by a one-time join token, bound to its name by the operator.

Sans-I/O.  The token is stored as a SHA-256 hash.  It has 256 random bits, so
that no slow hash is needed: there is nothing to guess.
"""

import hashlib
from datetime import datetime
from typing import Final

from ca.authority.attestation.attested import Attested, node_identity
from ca.authority.errors import Refusal
from ca.authority.records import TokenRecord
from ca.messages import RefusalCode

JOIN_TOKEN: Final = "join_token"
TOKEN_RANDOM_BYTES: Final = 32
_TOKEN_PREFIX: Final = "rfjoin-"  # lets secret scanners recognise a leaked one
_RENEW: Final = "make a new one with: ringfence ca token"


def format_token(random_bytes: bytes) -> str:
    """Write a token as text that survives copying: ``rfjoin-`` and hex."""
    return f"{_TOKEN_PREFIX}{random_bytes.hex()}"


def token_hash(token: str | bytes) -> bytes:
    """What the store keeps instead of the token."""
    return hashlib.sha256(token if isinstance(token, bytes) else token.encode("utf-8", "surrogatepass")).digest()


def by_token(*, trust_domain: str, node: str, found: TokenRecord | None, at: datetime) -> Attested:
    """Judge a join token that the store was asked for by its hash.

    Raises:
        Refusal: ``token_invalid``; the text says why only to whoever knows the token.
    """
    identity = node_identity(trust_domain, node)
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
    return Attested(identity=identity, node=node, method=JOIN_TOKEN, token_hash=found.token_hash)


def _token(text: str) -> Refusal:
    return Refusal(RefusalCode.TOKEN_INVALID, text)


def _shown(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
