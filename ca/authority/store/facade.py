"""The whole memory of the authority behind one door.

What belongs to one topic is in the file of that topic; the methods here are
what requests and commands call.  Blocking: call it from a worker thread.  Times
are aware UTC datetimes.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Self

from ca.authority.errors import AuthorityError
from ca.authority.keys import KeyFiles, KeyStore
from ca.authority.records import AuthorityRecord, CertificateRecord, NodeSummary, TokenRecord
from ca.authority.store.authorities import Authorities
from ca.authority.store.database import Database
from ca.authority.store.federation import Federation
from ca.authority.store.instances import Instances
from ca.authority.store.journal import Journal, JournalEntry
from ca.authority.store.jwt_keys import JwtKeys
from ca.authority.store.location import DatabaseLocation, PostgresAddress
from ca.authority.store.migrations import migrate
from ca.authority.store.revocations import Revocations
from ca.authority.store.signing_keys import KeyTable
from ca.authority.store.sqlite import SqliteDatabase
from ca.authority.store.tokens import Tokens
from ca.authority.store.trust import TrustRecords

KEYS_DIRECTORY = "keys"  # beside the SQLite file


class Store:
    """One connection to the database; owned by whoever opened it, who closes it.

    ``keys`` holds the signing keys, encrypted; ``database`` is for the topics
    and for what changes several of them in one transaction.
    """

    def __init__(self, database: Database, *, keys: KeyStore) -> None:
        self.database = database
        self.keys = keys
        self._journal = Journal(database)
        self._tokens = Tokens(database)
        self._authorities = Authorities(database)
        self.jwt_keys = JwtKeys(database)
        self.trust = TrustRecords(database)
        self.instances = Instances(database)
        self.revocations = Revocations(database)
        self.federation = Federation(database)

    @classmethod
    def open(cls, location: DatabaseLocation, *, create: bool = False, serving: bool = False) -> Self:
        """Open the database and bring its schema up to date.

        ``serving``: give up what takes longer than an agent waits, where a command waits for minutes; and be the only
        server of a file.

        Raises:
            AuthorityError: it is not there (and not ``create``), damaged, not reachable, from a newer version, or
                another server has it.
        """
        database: Database
        keys: KeyStore
        match location:
            case Path():
                database = SqliteDatabase.open(location, create=create)
                keys = KeyFiles(location.parent / KEYS_DIRECTORY)
            case PostgresAddress():
                database = _open_postgres(location, create=create)
                keys = KeyTable(database)
        try:
            migrate(database)  # as long as it takes: it may make an index of all that was ever issued
            if serving:
                database.begin_serving()
        except BaseException:
            database.close()
            raise
        return cls(database, keys=keys)

    def close(self) -> None:
        """Close the connection; the store is not usable after."""
        self.database.close()

    def is_leader(self) -> bool:
        """Whether this process does the background duties now; see ``Database.is_leader``."""
        return self.database.is_leader()

    def journal(
        self, records: Sequence[CertificateRecord], *, token_hash: bytes | None = None, at: datetime | None = None
    ) -> None:
        """Write certificates, and use up the token that bought the first, in one transaction.

        Raises:
            TokenAlreadyUsed: the token was used or removed meanwhile; nothing was written.
            StoreConflict: a serial is in the journal already; nothing was written.
        """
        self._journal.write(records, token_hash=token_hash, at=at)

    def journal_all(self, entries: Sequence[JournalEntry], *, at: datetime) -> list[bool]:
        """Write what several requests add in one transaction; for each, whether it was written.

        One is not when its token was used or removed meanwhile.

        Raises:
            StoreError: the database can not be used; nothing was written.
        """
        return self._journal.write_all(entries, at=at)

    def certificate_count(self) -> int:
        """How many certificates were ever issued."""
        return self._journal.count()

    def nodes(self) -> list[NodeSummary]:
        """Every node that ever got a certificate, by name."""
        return self._journal.nodes()

    def certificates(self, *, node: str | None = None) -> list[CertificateRecord]:
        """The journal in order of issue, of one node or of all."""
        return self._journal.read(node=node)

    def add_token(self, token: TokenRecord, *, at: datetime) -> None:
        """Remember a token, and forget those that ended more than a day ago."""
        self._tokens.add(token, at=at)

    def token(self, token_hash: bytes) -> TokenRecord | None:
        """Look a token up by its hash."""
        return self._tokens.find(token_hash)

    def pending_tokens(self, *, at: datetime) -> list[TokenRecord]:
        """Tokens that can still be used, the next to expire first."""
        return self._tokens.pending(at=at)

    def add_authorities(self, records: Sequence[AuthorityRecord]) -> None:
        """Add the first signing certificates, all or none.

        Raises:
            AuthorityError: there are some already (``init`` never overwrites).
        """
        self._authorities.add_first(records)

    def authorities(self) -> list[AuthorityRecord]:
        """Every signing certificate, in the order in which they were made."""
        return self._authorities.read()


def _open_postgres(address: PostgresAddress, *, create: bool) -> Database:
    try:
        from ca.authority.store.postgres import PostgresDatabase  # noqa: PLC0415 - psycopg is an optional dependency
    except ImportError as exc:
        raise AuthorityError(
            f"{address}: PostgreSQL needs the package psycopg ({exc}); run: pip install 'ringfence[postgres]'"
        ) from exc
    return PostgresDatabase.open(address, create=create)
