"""SQLite: the database of a single authority, a file in its state directory.

WAL mode with ``synchronous=FULL``: when a transaction has ended, it is on the
disk and survives ``kill -9`` and a power cut.  Several processes may use the
file at once (``ringfence ca token`` beside the server); writers wait for each
other up to ``_BUSY_TIMEOUT_S``.
"""

import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

from ca.authority.errors import AuthorityError, StoreConflict, StoreError
from ca.authority.store.claim import Claim
from ca.authority.store.database import Dialect, Parameters, Row

_BUSY_TIMEOUT_S: Final = 5.0


class SqliteDatabase:
    """One connection to the file; see ``Database`` for what each method promises."""

    dialect: Final = Dialect.SQLITE

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection
        self._turn = threading.RLock()
        self._claim: Claim | None = None

    @classmethod
    def open(cls, path: Path, *, create: bool = False) -> Self:
        """Open the file, or make it.

        Raises:
            AuthorityError: it is not there (and not ``create``), damaged, or not to be written by us.
        """
        try:
            if not create and not path.exists():
                raise AuthorityError(f"{path}: there is no authority here yet; make one with: ringfence ca init")
            connection = sqlite3.connect(
                path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, cached_statements=64
            )
            path.chmod(0o600)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
        except PermissionError as exc:
            raise AuthorityError(f"{path}: {exc.strerror}; run this as the authority's own user, or as root") from exc
        except (sqlite3.OperationalError, OSError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else exc
            raise AuthorityError(
                f"{path}: the database can not be opened: {why}; its directory and disk have to be writable, also for "
                "commands that only look"
            ) from exc
        except sqlite3.Error as exc:
            raise AuthorityError(f"{path}: the database can not be opened: {exc}; restore it from a backup") from exc
        return cls(path, connection)

    def __str__(self) -> str:
        return str(self._path)

    @contextmanager
    def transaction(self, *, alone: bool = True) -> Iterator["_SqliteTransaction"]:
        """SQLite has one writer at a time: every transaction is alone."""
        with self._turn, self._translated():
            nested = self._connection.in_transaction
            assert not nested, "transactions do not nest"
            # IMMEDIATE: take the write lock before the first read, so that what was checked is still so at commit.
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield _SqliteTransaction(self._connection)
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # SQLite ends it by itself when the disk is full
                    self._connection.execute("ROLLBACK")
                raise

    def query(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Read what was committed."""
        with self._turn, self._translated():
            return self._connection.execute(sql, parameters).fetchall()

    @contextmanager
    def snapshot(self) -> Iterator["_SqliteSnapshot"]:
        """In WAL mode a reader sees the file as it was at its first read."""
        with self._turn, self._translated():
            self._connection.execute("BEGIN")
            try:
                yield _SqliteSnapshot(self._connection)
            finally:
                self._connection.execute("ROLLBACK")

    def begin_serving(self) -> None:
        """A file of this machine does not keep anybody waiting, but for a writer, and then ``_BUSY_TIMEOUT_S``."""
        self._claim = Claim(self._path.parent)

    def is_leader(self) -> bool:
        """The file is on one machine and has one server."""
        return True

    def backup(self, target: Path) -> None:
        """Copy the database, as it is at one moment, into the new file ``target``; writers go on meanwhile."""
        with self._turn, self._translated():
            target.touch(mode=0o600, exist_ok=False)
            copy = sqlite3.connect(target)
            try:
                self._connection.backup(copy)
                copy.execute("PRAGMA journal_mode=DELETE")  # one file, without -wal and -shm beside it
            finally:
                copy.close()

    def damage(self) -> str | None:
        """What is wrong with the file, or None; reads all of it."""
        try:
            rows = self.query("PRAGMA integrity_check(1)")
        except StoreError as exc:
            return str(exc)
        return None if rows == [("ok",)] else str(rows[0][0])

    def close(self) -> None:
        """Close the connection."""
        with self._turn:
            self._connection.close()
            if self._claim is not None:
                self._claim.release()
                self._claim = None

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError as exc:
            raise StoreConflict(f"{self._path}: {exc}; nothing was written") from exc
        except sqlite3.Error as exc:
            raise StoreError(f"{self._path}: the database can not be used: {exc}") from exc


class _SqliteTransaction:
    """Statements between BEGIN and COMMIT."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, sql: str, parameters: Parameters = ()) -> int:
        return self._connection.execute(sql, parameters).rowcount

    def executemany(self, sql: str, rows: Iterable[Parameters]) -> None:
        self._connection.executemany(sql, rows)

    def query(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        return self._connection.execute(sql, parameters).fetchall()


class _SqliteSnapshot:
    """Reads between BEGIN and ROLLBACK."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def rows(self, sql: str) -> Iterator[Row]:
        yield from self._connection.execute(sql)
