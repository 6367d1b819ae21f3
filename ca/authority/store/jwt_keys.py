"""JWT-SVIDs: the keys that sign them (their public half; the private one is in the ``KeyStore``), and the journal."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from ca.authority.jwt_rotation import JwtKeyRecord
from ca.authority.records import AuthorityState
from ca.authority.store.database import Database, Transaction
from ca.authority.store.times import from_seconds, to_seconds
from ca.authority.store.trust import bump
from ca.trust import JwtKey

KEEP: Final = timedelta(days=30)  # tokens live for minutes, so there are thousands of times more than certificates
_INSERT: Final = (
    "INSERT INTO jwt_svids (token_id, identity, node, audience, issued_at, not_after, key_id, attestation, requester)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtRecord:
    """One line of the journal of tokens; ``token_id`` is the token's ``jti``.  The token itself is never stored."""

    token_id: str
    identity: str
    node: str
    audience: tuple[str, ...]
    issued_at: datetime
    not_after: datetime
    key_id: str
    attestation: str
    requester: str


class JwtKeys:
    """The tables ``jwt_keys`` and ``jwt_svids``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def read(self) -> list[JwtKeyRecord]:
        """Every key that is published, in the order in which they were made."""
        rows = self._database.query(
            "SELECT key_id, state, public_key, since FROM jwt_keys WHERE state != 'retired' ORDER BY rowid"
        )
        return [
            JwtKeyRecord(
                key_id=key_id, state=AuthorityState(state), public_key_der=bytes(public), since=from_seconds(since)
            )
            for key_id, state, public, since in rows
        ]

    def published(self) -> tuple[JwtKey, ...]:
        """What belongs into the trust bundle."""
        return tuple(JwtKey(key_id=key.key_id, public_key_der=key.public_key_der) for key in self.read())

    def changes(self) -> int:
        """How many keys have come and gone: it grows with every change of what is published."""
        rows = self._database.query("SELECT state, count(*) FROM jwt_keys GROUP BY state")
        return sum(int(count) * (2 if state == AuthorityState.RETIRED else 1) for state, count in rows)

    def active_key_id(self) -> str | None:
        """Which key signs now."""
        rows = self._database.query("SELECT key_id FROM jwt_keys WHERE state = 'active'")
        return None if not rows else str(rows[0][0])

    def add(self, key_id: str, public_key_der: bytes, *, seen: Sequence[JwtKeyRecord], at: datetime) -> bool:
        """Publish a prepared key; does nothing and returns False if the keys are others than were ``seen``."""
        with self._database.transaction() as transaction:
            now = transaction.query("SELECT key_id, state FROM jwt_keys WHERE state != 'retired' ORDER BY rowid")
            if [(key.key_id, str(key.state)) for key in seen] != [(name, state) for name, state in now]:
                return False
            transaction.execute(
                "INSERT INTO jwt_keys (key_id, state, public_key, since) VALUES (?, 'prepared', ?, ?)",
                (key_id, public_key_der, to_seconds(at)),
            )
            bump(transaction)
        return True

    def activate(self, key_id: str, *, at: datetime) -> None:
        """Let a prepared key sign instead of the active one; does nothing if it is not prepared (any more)."""
        with self._database.transaction() as transaction:
            if not transaction.query("SELECT key_id FROM jwt_keys WHERE key_id = ? AND state = 'prepared'", (key_id,)):
                return
            # The old one first: there is never more than one active key, says an index.
            transaction.execute(
                "UPDATE jwt_keys SET state = 'retiring', since = ? WHERE state = 'active'", (to_seconds(at),)
            )
            transaction.execute(
                "UPDATE jwt_keys SET state = 'active', since = ? WHERE key_id = ?", (to_seconds(at), key_id)
            )
            bump(transaction)

    def forget(self, key_id: str) -> None:
        """Take a retiring key out of the trust bundle; does nothing if it is not there (any more)."""
        with self._database.transaction() as transaction:
            if transaction.execute(
                "UPDATE jwt_keys SET state = 'retired' WHERE key_id = ? AND state = 'retiring'", (key_id,)
            ):
                bump(transaction)

    def issued(self, *, identity: str | None = None) -> list[JwtRecord]:
        """The journal of tokens in order of issue, of one identity or of all."""
        columns = "token_id, identity, node, audience, issued_at, not_after, key_id, attestation, requester"
        select = f"SELECT {columns} FROM jwt_svids"  # noqa: S608 - constants only
        if identity is None:
            rows = self._database.query(f"{select} ORDER BY rowid")
        else:
            rows = self._database.query(f"{select} WHERE identity = ? ORDER BY rowid", (identity,))
        return [
            JwtRecord(
                token_id=row[0],
                identity=row[1],
                node=row[2],
                audience=tuple(json.loads(row[3])),
                issued_at=from_seconds(row[4]),
                not_after=from_seconds(row[5]),
                key_id=row[6],
                attestation=row[7],
                requester=row[8],
            )
            for row in rows
        ]

    def prune(self, *, at: datetime) -> int:
        """Forget tokens that ended more than 30 days ago; returns how many."""
        with self._database.transaction() as transaction:
            return transaction.execute("DELETE FROM jwt_svids WHERE not_after < ?", (to_seconds(at - KEEP),))


def distrust_all(transaction: Transaction) -> list[str]:
    """Take every key out of the trust bundle at once, whatever it still signs; returns which (their private halves)."""
    rows = transaction.query("SELECT key_id FROM jwt_keys WHERE state != 'retired'")
    transaction.execute("UPDATE jwt_keys SET state = 'retired' WHERE state != 'retired'")
    return [str(row[0]) for row in rows]


def journal_jwts(transaction: Transaction, records: Sequence[JwtRecord]) -> None:
    """Write tokens to the journal, in the transaction of the group that they were asked for in."""
    if records:
        transaction.executemany(
            _INSERT,
            [
                (
                    record.token_id,
                    record.identity,
                    record.node,
                    json.dumps(record.audience),
                    to_seconds(record.issued_at),
                    to_seconds(record.not_after),
                    record.key_id,
                    record.attestation,
                    record.requester,
                )
                for record in records
            ],
        )
