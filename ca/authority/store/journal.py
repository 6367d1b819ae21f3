"""The journal: every certificate that was ever issued, written before it leaves."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from ca.authority.records import CertificateRecord, Instance, NodeSummary
from ca.authority.store.database import Database, Row
from ca.authority.store.instances import take_up
from ca.authority.store.jwt_keys import JwtRecord, journal_jwts
from ca.authority.store.times import from_seconds, to_seconds
from ca.authority.store.tokens import TokenAlreadyUsed, use_up

_COLUMNS = "serial, identity, node, not_before, not_after, issued_at, attestation, requester, issuer_key_id"
_INSERT = f"INSERT INTO certificates ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - constants only


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """What one request adds: its certificates, and the token that bought the first, if one did; or JWT-SVIDs."""

    records: tuple[CertificateRecord, ...] = ()
    jwts: tuple[JwtRecord, ...] = ()
    token_hash: bytes | None = None
    instance: Instance | None = None  # the machine that attested, which does so once


class Journal:
    """The table ``certificates``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def write(self, records: Sequence[CertificateRecord], *, token_hash: bytes | None, at: datetime | None) -> None:
        """Write certificates, and use up the token that bought the first, in one transaction.

        Raises:
            TokenAlreadyUsed: the token was used or removed meanwhile; nothing was written.
            StoreConflict: a serial is in the journal already; nothing was written.
        """
        # Not alone: the primary key refuses a serial that was used, and a token changes hands in one UPDATE.
        with self._database.transaction(alone=False) as transaction:
            if token_hash is not None:
                assert at is not None
                use_up(transaction, token_hash, used_by=records[0].serial_hex, at=at)
            transaction.executemany(_INSERT, [_row(record) for record in records])

    def write_all(self, entries: Sequence[JournalEntry], *, at: datetime) -> list[bool]:
        """Write what several requests add in one transaction: they share the wait for the disk.

        Returns for each whether it was written: it is not when its token was used or removed meanwhile,
        or its machine attested.

        Raises:
            StoreError: the database can not be used; nothing was written.
        """
        written = [True] * len(entries)
        # Tokens in one order everywhere: two replicas that use up the same two do not wait for each other.
        machines = sorted(
            (entry.instance.method, entry.instance.id, number)
            for number, entry in enumerate(entries)
            if entry.instance is not None
        )
        buying = sorted((entry.token_hash, number) for number, entry in enumerate(entries) if entry.token_hash)
        with self._database.transaction(alone=False) as transaction:
            for token_hash, number in buying:
                try:
                    use_up(transaction, token_hash, used_by=entries[number].records[0].serial_hex, at=at)
                except TokenAlreadyUsed:
                    written[number] = False
            for method, name, number in machines:
                instance = Instance(method=method, id=name)
                written[number] = take_up(transaction, instance, record=entries[number].records[0])
            accepted = [entry for entry, good in zip(entries, written, strict=True) if good]
            transaction.executemany(_INSERT, [_row(record) for entry in accepted for record in entry.records])
            journal_jwts(transaction, [record for entry in accepted for record in entry.jwts])
        return written

    def count(self) -> int:
        """How many certificates were ever issued."""
        return int(self._database.query("SELECT count(*) FROM certificates")[0][0])

    def nodes(self) -> list[NodeSummary]:
        """Every node that ever got a certificate, by name."""
        rows = self._database.query(
            "SELECT node, count(*), max(issued_at) FROM certificates WHERE node != '' GROUP BY node ORDER BY node"
        )
        return [
            NodeSummary(node=node, certificates=count, last_issued_at=from_seconds(last)) for node, count, last in rows
        ]

    def read(self, *, node: str | None) -> list[CertificateRecord]:
        """The journal in order of issue, of one node or of all."""
        select = f"SELECT {_COLUMNS} FROM certificates"  # noqa: S608 - constants only
        if node is None:
            rows = self._database.query(f"{select} ORDER BY rowid")
        else:
            rows = self._database.query(f"{select} WHERE node = ? ORDER BY rowid", (node,))
        return [_record(row) for row in rows]


def _row(record: CertificateRecord) -> tuple[str | int, ...]:
    return (
        record.serial_hex,
        record.identity,
        record.node,
        to_seconds(record.not_before),
        to_seconds(record.not_after),
        to_seconds(record.issued_at),
        record.attestation,
        record.requester,
        record.issuer_key_id,
    )


def _record(row: Row) -> CertificateRecord:
    return CertificateRecord(
        serial=int(row[0], 16),
        identity=row[1],
        node=row[2],
        not_before=from_seconds(row[3]),
        not_after=from_seconds(row[4]),
        issued_at=from_seconds(row[5]),
        attestation=row[6],
        requester=row[7],
        issuer_key_id=row[8],
    )
