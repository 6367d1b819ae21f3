"""One example of every message between agent and CA: seeds of the fuzzers, and what hostile texts are put into."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

from ca.csr import build_csr, new_key
from ca.messages import (
    Attest,
    AttestWithToken,
    Bundle,
    GetBundle,
    Issued,
    IssuedCertificate,
    JwtIssued,
    RefusalCode,
    Refused,
    RenewNode,
    Reply,
    Request,
    SignJwt,
    SignRequest,
    SignWorkloads,
    WatchTrust,
)
from ca.spiffe import SpiffeId
from ca.trust import JwtKey, Revocation, RevocationKind, Trust, TrustBundle

WEB: Final = SpiffeId.workload("cluster.local", "default", "web")
NODE: Final = SpiffeId.node("cluster.local", "node-1")
_AT: Final = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def requests() -> tuple[Request, ...]:
    """Each is one that an honest agent could send."""
    key = new_key()
    return (
        AttestWithToken(node="node-1", token="rfjoin-" + "0" * 64, csr_der=build_csr(key, NODE)),
        Attest(plugin="kubernetes", node="node-1", evidence=b"e30.e30.c2ln", csr_der=build_csr(key, NODE)),
        RenewNode(csr_der=build_csr(key, NODE)),
        SignWorkloads(requests=(SignRequest(identity=WEB, csr_der=build_csr(key, WEB)),)),
        SignJwt(identity=WEB, audience=("db", "https://api.example"), ttl_s=300.0),
        GetBundle(),
        WatchTrust(version=7, digest=bytes(32)),
    )


def replies() -> tuple[Reply, ...]:
    """Each is one that the CA could send; the certificates in them are not any."""
    refused = Refused(code=RefusalCode.NOT_SCHEDULED, text="no such pod", retry_after_s=1.0)
    bundle = TrustBundle(
        trust_domain="cluster.local",
        sequence=3,
        refresh_hint_s=300.0,
        x509_der=(b"root",),
        jwt_keys=(JwtKey(key_id="k1", public_key_der=b"key"),),
    )
    revocations = (
        Revocation(kind=RevocationKind.NODE, value="node-2", at=_AT, until=None, why="stolen", serials=(1, 2)),
        Revocation(kind=RevocationKind.IDENTITY, value=str(WEB), at=_AT, until=None, why="leaked"),
        Revocation(kind=RevocationKind.SERIAL, value="0a" * 20, at=_AT, until=_AT, why="test"),
    )
    return (
        Issued(
            certificates=(
                IssuedCertificate(identity=WEB, chain_der=(b"leaf", b"intermediate")),
                IssuedCertificate(identity=NODE, error=refused),
            ),
            bundle_der=(b"root",),
            trust_domain="cluster.local",
        ),
        JwtIssued(token="e30.e30.c2ln"),
        Bundle(trust_domain="cluster.local", roots_der=(b"root",), sequence=3, refresh_hint_s=300.0),
        Trust(version=7, bundles=(bundle,), revocations=revocations),
        refused,
    )


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every leaf of a message on the wire, and of every key of its maps."""
    items: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        yield path
    for key, item in items:
        yield from places(item, (*path, key))


def replaced(value: Any, path: tuple[str | int, ...], by: object) -> Any:
    """A copy of ``value`` with something else at ``path``."""
    if not path:
        return by
    first, *rest = path
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    copy[first] = replaced(copy[first], tuple(rest), by)
    return copy
