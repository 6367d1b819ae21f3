"""The public half of the hierarchy: every signing certificate, with its state."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from ca.authority.errors import AuthorityError
from ca.authority.records import AuthorityKind, AuthorityRecord, AuthorityState
from ca.authority.store.database import Database, Row, Transaction
from ca.authority.store.times import from_seconds, to_seconds

_COLUMNS: Final = "key_id, kind, state, certificate, issuer_key_id, created_at, since"
_SELECT: Final = f"SELECT {_COLUMNS} FROM authorities ORDER BY rowid"  # noqa: S608 - constants only


class Authorities:
    """The table ``authorities``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_first(self, records: Sequence[AuthorityRecord]) -> None:
        """Add signing certificates, all or none, to a table that has none.

        Raises:
            AuthorityError: there are some already (``init`` never overwrites).
        """
        with self._database.transaction() as transaction:
            if transaction.query("SELECT count(*) FROM authorities")[0][0]:
                raise AuthorityError("there is an authority here already; it is never overwritten")
            add(transaction, records)

    def read(self) -> list[AuthorityRecord]:
        """Every signing certificate, in the order in which they were made."""
        return read(self._database)


def read(source: Database | Transaction) -> list[AuthorityRecord]:
    """Every signing certificate, in the order in which they were made; in a transaction, as it is inside of it."""
    return [_record(row) for row in source.query(_SELECT)]


def last_not_after(source: Database | Transaction, key_id: str) -> datetime | None:
    """When the last certificate that a key signed ends, by the journal; None if it signed none."""
    rows = source.query("SELECT max(not_after) FROM certificates WHERE issuer_key_id = ?", (key_id,))
    return None if rows[0][0] is None else from_seconds(rows[0][0])


def add(transaction: Transaction, records: Iterable[AuthorityRecord]) -> None:
    """Add signing certificates.

    Raises:
        StoreConflict: one of them is there already.
    """
    transaction.executemany(
        f"INSERT INTO authorities ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 - constants only
        [
            (
                record.key_id,
                str(record.kind),
                str(record.state),
                record.certificate.public_bytes(serialization.Encoding.DER),
                record.issuer_key_id,
                to_seconds(record.created_at),
                to_seconds(record.since),
            )
            for record in records
        ],
    )


def set_state(transaction: Transaction, key_id: str, state: AuthorityState, *, at: datetime) -> None:
    """Bring one signing key into another state."""
    transaction.execute(
        "UPDATE authorities SET state = ?, since = ? WHERE key_id = ?", (str(state), to_seconds(at), key_id)
    )


def replace_certificate(transaction: Transaction, certificate: x509.Certificate, *, key_id: str) -> None:
    """Take another certificate for the same key: somebody else's was renewed."""
    der = certificate.public_bytes(serialization.Encoding.DER)
    transaction.execute("UPDATE authorities SET certificate = ? WHERE key_id = ?", (der, key_id))


def _record(row: Row) -> AuthorityRecord:
    return AuthorityRecord(
        key_id=row[0],
        kind=AuthorityKind(row[1]),
        state=AuthorityState(row[2]),
        certificate=x509.load_der_x509_certificate(row[3]),
        issuer_key_id=row[4],
        created_at=from_seconds(row[5]),
        since=from_seconds(row[5] if row[6] is None else row[6]),
    )
