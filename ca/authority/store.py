"""The authority's memory: SQLite, where every certificate is written before it leaves.

Tables: ``certificates`` (the journal), ``tokens`` (join tokens, hashed),
``authorities`` (the public half of the hierarchy; keys are files, see
``keys.py``), ``schema_version``.

The database is in WAL mode with ``synchronous=FULL``: when ``journal`` returns,
the record is on the disk and survives ``kill -9`` and a power cut.  Several
processes may use it at once (``ringfence ca token`` beside the server); writers
wait for each other up to ``_BUSY_TIMEOUT_S``.

Blocking: call it from a worker thread, one thread at a time.  Times are aware
UTC datetimes here and whole seconds since 1970 in the file.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from ca.authority.errors import AuthorityError
from ca.authority.records import (
    AuthorityKind,
    AuthorityRecord,
    AuthorityState,
    CertificateRecord,
    NodeSummary,
    TokenRecord,
)

_BUSY_TIMEOUT_S: Final = 5.0
# One entry a version; an entry, once released, never changes.
_MIGRATIONS: Final = (
    """
    CREATE TABLE authorities (
        key_id TEXT PRIMARY KEY,             -- subject key identifier, hex: names the key file
        kind TEXT NOT NULL,                  -- root | intermediate
        state TEXT NOT NULL,                 -- prepared | active | retired
        certificate BLOB NOT NULL,           -- DER
        issuer_key_id TEXT NOT NULL,
        created_at INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE certificates (
        serial TEXT PRIMARY KEY,             -- hex
        identity TEXT NOT NULL,
        node TEXT NOT NULL,                  -- the node that asked; empty for the CA's own
        not_before INTEGER NOT NULL,
        not_after INTEGER NOT NULL,
        issued_at INTEGER NOT NULL,
        attestation TEXT NOT NULL,           -- how the asker proved itself
        requester TEXT NOT NULL,             -- its address
        issuer_key_id TEXT NOT NULL
    ) STRICT;
    CREATE INDEX certificates_node ON certificates (node, issued_at);
    CREATE INDEX certificates_identity ON certificates (identity, issued_at);
    CREATE TABLE tokens (
        hash BLOB PRIMARY KEY,               -- sha256; the token itself is never stored
        node TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        expires_at INTEGER NOT NULL,
        used_at INTEGER,
        used_by TEXT                         -- serial of the certificate that it bought
    ) STRICT;
    """,
)


class TokenAlreadyUsed(Exception):
    """Somebody else used the token between the check and the journal: nothing was written."""


class Store:
    """One connection to the database; owned by whoever opened it, who closes it."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    def open(cls, path: Path, *, create: bool = False) -> Self:
        """Open the database and bring its schema up to date.

        Raises:
            AuthorityError: it is not there (and not ``create``), damaged, or from a newer version.
        """
        if not create and not path.exists():
            raise AuthorityError(f"{path}: there is no authority here yet; make one with: ringfence ca init")
        try:
            connection = sqlite3.connect(
                path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, cached_statements=64
            )
            path.chmod(0o600)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            store = cls(connection)
            store._migrate(path)
        except (sqlite3.Error, OSError) as exc:
            raise AuthorityError(f"{path}: the database can not be opened: {exc}; restore it from a backup") from exc
        return store

    def close(self) -> None:
        """Close the connection; the store is not usable after."""
        self._connection.close()

    def _migrate(self, path: Path) -> None:
        with self._transaction() as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL) STRICT")
            row = connection.execute("SELECT max(version) FROM schema_version").fetchone()
            version: int = row[0] or 0
            if version > len(_MIGRATIONS):
                raise AuthorityError(
                    f"{path}: schema version {version} is newer than this program's {len(_MIGRATIONS)}; "
                    "run the version of Ringfence that wrote it, or a later one"
                )
            for number, script in enumerate(_MIGRATIONS[version:], start=version + 1):
                for statement in script.split(";\n"):
                    connection.execute(statement)
                connection.execute("INSERT INTO schema_version VALUES (?)", (number,))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        # IMMEDIATE: take the write lock before the first read, so that what was checked is still so at commit.
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def journal(
        self, records: Sequence[CertificateRecord], *, token_hash: bytes | None = None, at: datetime | None = None
    ) -> None:
        """Write certificates, and use up the token that bought the first, in one transaction.

        Raises:
            TokenAlreadyUsed: the token was used or removed meanwhile; nothing was written.
        """
        with self._transaction() as connection:
            if token_hash is not None:
                assert at is not None
                used = connection.execute(
                    "UPDATE tokens SET used_at = ?, used_by = ? WHERE hash = ? AND used_at IS NULL",
                    (_seconds(at), records[0].serial_hex, token_hash),
                )
                if used.rowcount != 1:
                    raise TokenAlreadyUsed
            connection.executemany(
                "INSERT INTO certificates VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        record.serial_hex,
                        record.identity,
                        record.node,
                        _seconds(record.not_before),
                        _seconds(record.not_after),
                        _seconds(record.issued_at),
                        record.attestation,
                        record.requester,
                        record.issuer_key_id,
                    )
                    for record in records
                ],
            )

    def certificate_count(self) -> int:
        """How many certificates were ever issued."""
        row = self._connection.execute("SELECT count(*) FROM certificates").fetchone()
        return int(row[0])

    def nodes(self) -> list[NodeSummary]:
        """Every node that ever got a certificate, by name."""
        rows = self._connection.execute(
            "SELECT node, count(*), max(issued_at) FROM certificates WHERE node != '' GROUP BY node ORDER BY node"
        )
        return [NodeSummary(node=node, certificates=count, last_issued_at=_time(last)) for node, count, last in rows]

    def certificates(self, *, node: str | None = None) -> list[CertificateRecord]:
        """The journal in order of issue, of one node or of all."""
        rows = self._connection.execute(
            "SELECT serial, identity, node, not_before, not_after, issued_at, attestation, requester, issuer_key_id"
            " FROM certificates WHERE ?1 IS NULL OR node = ?1 ORDER BY rowid",
            (node,),
        )
        return [
            CertificateRecord(
                serial=int(row[0], 16),
                identity=row[1],
                node=row[2],
                not_before=_time(row[3]),
                not_after=_time(row[4]),
                issued_at=_time(row[5]),
                attestation=row[6],
                requester=row[7],
                issuer_key_id=row[8],
            )
            for row in rows
        ]

    def add_token(self, token: TokenRecord, *, at: datetime) -> None:
        """Remember a token, and forget those that ended more than a day ago."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM tokens WHERE expires_at < ?", (_seconds(at) - 86_400,))
            connection.execute(
                "INSERT INTO tokens (hash, node, created_at, expires_at) VALUES (?, ?, ?, ?)",
                (token.token_hash, token.node, _seconds(at), _seconds(token.expires_at)),
            )

    def token(self, token_hash: bytes) -> TokenRecord | None:
        """Look a token up by its hash."""
        row = self._connection.execute(
            "SELECT node, expires_at, used_at FROM tokens WHERE hash = ?", (token_hash,)
        ).fetchone()
        if row is None:
            return None
        node, expires_at, used_at = row
        used = None if used_at is None else _time(used_at)
        return TokenRecord(token_hash=token_hash, node=node, expires_at=_time(expires_at), used_at=used)

    def pending_tokens(self, *, at: datetime) -> list[TokenRecord]:
        """Tokens that can still be used, the next to expire first."""
        rows = self._connection.execute(
            "SELECT hash, node, expires_at FROM tokens WHERE used_at IS NULL AND expires_at > ? ORDER BY expires_at",
            (_seconds(at),),
        )
        return [TokenRecord(token_hash=row[0], node=row[1], expires_at=_time(row[2])) for row in rows]

    def add_authorities(self, records: Sequence[AuthorityRecord]) -> None:
        """Add signing certificates, all or none.

        Raises:
            AuthorityError: there are some already (``init`` never overwrites).
        """
        with self._transaction() as connection:
            if connection.execute("SELECT count(*) FROM authorities").fetchone()[0]:
                raise AuthorityError("there is an authority here already; it is never overwritten")
            connection.executemany(
                "INSERT INTO authorities VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (
                        record.key_id,
                        record.kind,
                        record.state,
                        _der(record.certificate),
                        record.issuer_key_id,
                        _seconds(record.created_at),
                    )
                    for record in records
                ],
            )

    def authorities(self) -> list[AuthorityRecord]:
        """Every signing certificate, in the order in which they were made."""
        rows = self._connection.execute(
            "SELECT key_id, kind, state, certificate, issuer_key_id, created_at FROM authorities ORDER BY rowid"
        )
        return [
            AuthorityRecord(
                key_id=row[0],
                kind=AuthorityKind(row[1]),
                state=AuthorityState(row[2]),
                certificate=x509.load_der_x509_certificate(row[3]),
                issuer_key_id=row[4],
                created_at=_time(row[5]),
            )
            for row in rows
        ]


def _seconds(at: datetime) -> int:
    return int(at.timestamp())


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)
