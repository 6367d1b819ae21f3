"""A node proves itself by a document about its machine that the machine's provider signed.

The worked example of a plugin that needs nobody's answer: sans-I/O but for the
one await that the protocol wants.  Its shape is that of the instance identity
documents of AWS (a JSON object, and a detached signature of exactly those
bytes), and any provider or provisioning system that can sign a file can make
one.  The evidence is a msgpack map of ``document`` and ``signature``, bytes both.

Whatever runs on a machine can usually fetch its document.  So a machine attests
once: whoever comes first, at its first boot, is believed (trust on first use),
and everybody after is refused until the operator lets the machine try again.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from ca.authority.attestation.attested import Attested, Claim, node_identity, refused
from ca.authority.records import Instance
from ca.errors import WireError
from ca.wire import unpack

INSTANCE_DOCUMENT: Final = "instance_document"
_MAX_EVIDENCE_BYTES: Final = 16 * 1024
_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_FIELD: Final = re.compile(r"\{([A-Za-z][A-Za-z0-9]*)\}")
_SKEW: Final = timedelta(seconds=60)
_MIN_RSA_BITS: Final = 2048

SigningKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentRules:
    """Whose documents count, and which node a document is of.

    ``node_name`` is a template over the fields of the document.  ``max_age``
    is counted from ``pendingTime``; None: a document never gets too old.
    ``regions`` empty: all.
    """

    certificates: tuple[x509.Certificate, ...]
    accounts: frozenset[str]
    regions: frozenset[str]
    node_name: str
    max_age: timedelta | None


class InstanceDocuments:
    """The plugin ``instance_document``."""

    def __init__(self, *, trust_domain: str, rules: DocumentRules) -> None:
        self._trust_domain = trust_domain
        self._rules = rules

    @property
    def name(self) -> str:
        return INSTANCE_DOCUMENT

    async def attest(self, claim: Claim, *, at: datetime) -> Attested:
        """See ``Plugin.attest``."""
        identity = node_identity(self._trust_domain, claim.node)
        instance = judge(claim, rules=self._rules, at=at)
        return Attested(
            identity=identity,
            node=claim.node,
            method=INSTANCE_DOCUMENT,
            detail=f"machine {instance.id}",
            instance=instance,
        )


def judge(claim: Claim, *, rules: DocumentRules, at: datetime) -> Instance:
    """Which machine it is; nothing of the document is read before its signature is checked.

    Raises:
        Refusal: naming the rule that the document breaks.
    """
    document, signature = _parts(claim.evidence)
    _require_signed(document, signature, certificates=rules.certificates, at=at)
    fields = _fields(document)
    account, instance = _id(fields, "accountId"), _id(fields, "instanceId")
    if account not in rules.accounts:
        raise refused(f"account {account} is not one of the authority's ([attestation.instance_document] accounts)")
    if rules.regions and _id(fields, "region") not in rules.regions:
        raise refused("the machine is in another region ([attestation.instance_document] regions at the authority)")
    if rules.max_age is not None:
        _require_young(fields, max_age=rules.max_age, at=at)
    node = _FIELD.sub(lambda found: _id(fields, found[1]), rules.node_name)
    if node != claim.node:
        raise refused(
            f"the document is of the machine whose node is called {node} "
            "([attestation.instance_document] node_name at the authority)"
        )
    return Instance(method=INSTANCE_DOCUMENT, id=f"{account}/{instance}")


def _parts(evidence: bytes) -> tuple[bytes, bytes]:
    try:
        parts = unpack(evidence, _MAX_EVIDENCE_BYTES)
    except WireError as exc:
        raise refused("the evidence is not a map of document and signature") from exc
    if not isinstance(parts, dict) or parts.keys() != {"document", "signature"}:
        raise refused("the evidence is not a map of document and signature")
    document, signature = parts["document"], parts["signature"]
    if not isinstance(document, bytes) or not isinstance(signature, bytes):
        raise refused("document and signature have to be bytes")
    return document, signature


def _require_signed(
    document: bytes, signature: bytes, *, certificates: Sequence[x509.Certificate], at: datetime
) -> None:
    for certificate in certificates:
        if certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc:
            try:
                _verify(signing_key(certificate), signature, document)
            except InvalidSignature:
                continue
            return
    raise refused("no certificate that is valid now vouches for the document's signature (RFC 8017 8.2, RFC 6979)")


def signing_key(certificate: x509.Certificate) -> SigningKey:
    """The key that documents are verified with.  Raises ValueError: it is of a kind or size that does not count."""
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= _MIN_RSA_BITS:
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
        return key
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    raise ValueError(f"its key has to be RSA of {_MIN_RSA_BITS} bits or more, P-256, P-384 or Ed25519")


def _verify(key: SigningKey, signature: bytes, document: bytes) -> None:
    """Raises InvalidSignature.  SHA-256 throughout, as the providers sign."""
    match key:
        case rsa.RSAPublicKey():
            key.verify(signature, document, padding.PKCS1v15(), hashes.SHA256())
        case ec.EllipticCurvePublicKey():
            key.verify(signature, document, ec.ECDSA(hashes.SHA256()))
        case ed25519.Ed25519PublicKey():
            key.verify(signature, document)


def _fields(document: bytes) -> Mapping[str, Any]:
    try:
        fields = json.loads(document.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as exc:
        raise refused("the document is not a JSON object whose names differ (RFC 8259 4)") from exc
    if not isinstance(fields, dict):
        raise refused("the document is not a JSON object (RFC 8259 4)")
    return fields


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError
    return found


def _id(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise refused(f"{name} of the document has to be text of letters, digits, '.', '-' and '_'")
    return value


def _require_young(fields: Mapping[str, Any], *, max_age: timedelta, at: datetime) -> None:
    try:
        since = datetime.strptime(str(fields.get("pendingTime")), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError as exc:
        raise refused("pendingTime of the document has to be a time such as 2026-11-22T12:00:00Z (RFC 3339)") from exc
    if since > at + _SKEW:
        raise refused(f"the machine was started at {since:%Y-%m-%dT%H:%M:%SZ}, and it is {at:%Y-%m-%dT%H:%M:%SZ} here")
    if at - since > max_age:
        raise refused(
            f"the machine was started at {since:%Y-%m-%dT%H:%M:%SZ}, longer ago than {max_age.total_seconds():.0f} s "
            "([attestation.instance_document] max_age_s at the authority)"
        )
