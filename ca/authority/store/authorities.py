"""The public half of the hierarchy: every signing certificate, with its state."""

from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from ca.authority.errors import AuthorityError
from ca.authority.records import AuthorityKind, AuthorityRecord, AuthorityState
from ca.authority.store.database import Database
from ca.authority.store.times import from_seconds, to_seconds


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
            transaction.executemany(
                "INSERT INTO authorities (key_id, kind, state, certificate, issuer_key_id, created_at)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (
                        record.key_id,
                        str(record.kind),
                        str(record.state),
                        record.certificate.public_bytes(serialization.Encoding.DER),
                        record.issuer_key_id,
                        to_seconds(record.created_at),
                    )
                    for record in records
                ],
            )

    def read(self) -> list[AuthorityRecord]:
        """Every signing certificate, in the order in which they were made."""
        rows = self._database.query(
            "SELECT key_id, kind, state, certificate, issuer_key_id, created_at FROM authorities ORDER BY rowid"
        )
        return [
            AuthorityRecord(
                key_id=row[0],
                kind=AuthorityKind(row[1]),
                state=AuthorityState(row[2]),
                certificate=x509.load_der_x509_certificate(row[3]),
                issuer_key_id=row[4],
                created_at=from_seconds(row[5]),
            )
            for row in rows
        ]
