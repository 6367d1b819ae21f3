"""What the authority remembers, as values; ``store.py`` keeps them."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from cryptography import x509


class AuthorityKind(StrEnum):
    """Where a signing certificate stands in the hierarchy."""

    ROOT = "root"
    UPSTREAM = "upstream"  # somebody else's, between a foreign root and our intermediate; its key is not here
    INTERMEDIATE = "intermediate"


class AuthorityState(StrEnum):
    """The life of a signing key; ``rotation`` says when it goes from one to the next."""

    PREPARED = "prepared"  # published, does not sign yet
    ACTIVE = "active"
    RETIRING = "retiring"  # signs no more, but what it signed is still trusted
    RETIRED = "retired"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityRecord:
    """The public half of one signing key; ``since`` is when it came into its state."""

    key_id: str
    kind: AuthorityKind
    state: AuthorityState
    certificate: x509.Certificate
    issuer_key_id: str
    created_at: datetime
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateRecord:
    """One line of the journal."""

    serial: int
    identity: str
    node: str
    not_before: datetime
    not_after: datetime
    issued_at: datetime
    attestation: str
    requester: str
    issuer_key_id: str

    @property
    def serial_hex(self) -> str:
        """The serial number as the journal, the logs and openssl write it."""
        return f"{self.serial:040x}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A machine that may attest once: ``id`` is unique within ``method``, such as ``<account>/<instance>``."""

    method: str
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceRecord:
    """A machine that has attested, as ``node``."""

    instance: Instance
    node: str
    attested_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRecord:
    """What is known of a join token; the token itself is not."""

    token_hash: bytes
    node: str
    expires_at: datetime
    used_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSummary:
    """What the journal knows of one node."""

    node: str
    certificates: int
    last_issued_at: datetime
