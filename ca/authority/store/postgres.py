"""PostgreSQL: the database that several replicas share.  With ``postgres_session`` the only door to psycopg.

Theory of operation.  One session, in which statements run one after the other.

*Alone or side by side.*  Each transaction begins with an advisory lock: shared
for appends, exclusive for all others, so that code which reads and then writes
is as safe as in SQLite, while replicas issue side by side.  The leader is whoever
holds another advisory lock, bound to its session.  Both are keyed by the schema:
two authorities may share a server.

*Gone and back.*  A session that ended is replaced at the next BEGIN or SELECT
(nothing was asked yet, so asking again is harmless).  When that fails, every
call fails at once for ``_RETRY_S``, so that a server which is down costs a
request milliseconds; a wait for one that is stuck ends, too.  A
session that breaks later fails its transaction, and whether a COMMIT that got no
answer took effect is not known: it is reported as failed, so a certificate may
be in the journal that nobody got, never the reverse.
"""

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final, Self

import psycopg

from ca.authority.errors import AuthorityError, StoreConflict, StoreError
from ca.authority.store.database import Dialect, Parameters, Row
from ca.authority.store.location import PostgresAddress
from ca.authority.store.postgres_session import connect
from ca.authority.store.watchdog import Watchdog

# An agent waits 5 s for an answer: what takes longer is refused, so that it knows.  A person waits longer.
_SERVING_S: Final = 4
_COMMAND_S: Final = 600  # to count all that was ever issued, or to make an index of it
_STUCK_S: Final = 1.0  # beyond that: then the server is not slow, it is stuck
_RETRY_S: Final = 1.0
_WRITE_LOCK: Final = "1382416385, hashtext(current_schema())"  # arbitrary numbers, one a purpose
_LEAD_LOCK: Final = "1382416386, hashtext(current_schema())"
_MAX_REASON: Final = 300

_Connection = psycopg.Connection[Row]
_Cursor = psycopg.Cursor[Row]


class PostgresDatabase:
    """One session with the server; see ``Database`` for what each method promises."""

    dialect: Final = Dialect.POSTGRESQL

    def __init__(self, address: PostgresAddress) -> None:
        self._address = address
        self._statement_s = _COMMAND_S
        self._turn = threading.RLock()
        self._session: _Connection | None = None
        self._in_transaction = False
        self._retry_at = -1.0  # time.monotonic
        self._watchdog = Watchdog(limit_s=self._statement_s + _STUCK_S)

    @classmethod
    def open(cls, address: PostgresAddress, *, create: bool = False) -> Self:
        """Connect, patiently; see ``begin_serving``.

        Raises:
            AuthorityError: not reachable, not to be trusted with records, or (without ``create``) without an authority.
        """
        database = cls(address)
        try:
            if not create and not database.query("SELECT to_regclass('schema_version') IS NOT NULL")[0][0]:
                raise AuthorityError(f"{address}: there is no authority here yet; make one with: ringfence ca init")
        except BaseException:
            database.close()
            raise
        return database

    def begin_serving(self) -> None:
        """From now on give up what takes longer than an agent waits."""
        with self._turn:
            self.close()
            self._statement_s = _SERVING_S
            self._watchdog = Watchdog(limit_s=_SERVING_S + _STUCK_S)

    def __str__(self) -> str:
        return str(self._address)

    @contextmanager
    def transaction(self, *, alone: bool = True) -> Iterator["_PostgresTransaction"]:
        """Appends (not ``alone``) run side by side; everything else one after the other."""
        with self._turn, self._translated():
            assert not self._in_transaction, "transactions do not nest"
            lock = "pg_advisory_xact_lock" if alone else "pg_advisory_xact_lock_shared"
            session, _ = self._asked(f"BEGIN; SELECT {lock}({_WRITE_LOCK})")
            self._in_transaction = True
            try:
                transaction = _PostgresTransaction(session, self._watchdog)
                yield transaction
                transaction.execute("COMMIT")
            except BaseException:
                self._roll_back(session)
                raise
            finally:
                self._in_transaction = False

    def query(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Read what was committed."""
        with self._turn, self._translated():
            return _rows(self._asked(sql, parameters)[1])

    @contextmanager
    def snapshot(self) -> Iterator["_PostgresSnapshot"]:
        """A transaction of its own, without the locks of those that write."""
        with self._turn, self._translated():
            assert not self._in_transaction, "transactions do not nest"
            session, _ = self._asked(
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = 0;"
                " SET LOCAL idle_in_transaction_session_timeout = 0"
            )
            self._in_transaction = True
            try:
                yield _PostgresSnapshot(session)
            finally:
                self._in_transaction = False
                self._roll_back(session)

    def is_leader(self) -> bool:
        """Take the lead if nobody has it; it ends with the session, which this replaces if it broke."""
        return bool(self.query(f"SELECT pg_try_advisory_lock({_LEAD_LOCK})")[0][0])

    def close(self) -> None:
        """End the session; the lead goes to whoever asks next."""
        with self._turn:
            self._disconnect()
            self._watchdog.stop()

    def _disconnect(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _asked(self, sql: str, parameters: Parameters = ()) -> tuple[_Connection, _Cursor]:
        """Ask what is harmless to ask twice; in a new session when the old one is broken."""
        session = self._session
        if session is not None:
            try:
                with self._watchdog.watching(session.fileno()):
                    return session, _execute(session, sql, parameters)
            except psycopg.OperationalError:
                if self._in_transaction or not session.closed:
                    self._roll_back(session)
                    raise
        session = self._connected()
        with self._watchdog.watching(session.fileno()):
            return session, _execute(session, sql, parameters)

    def _connected(self) -> _Connection:
        now = time.monotonic()
        if now < self._retry_at:
            raise StoreError(f"{self._address}: the database could not be reached a moment ago")
        self._retry_at = now + _RETRY_S
        self._disconnect()
        try:
            self._session = connect(self._address, self._watchdog, statement_s=self._statement_s)
        except psycopg.Error as exc:
            raise StoreError(f"{self._address}: the database can not be reached: {_reason(exc)}") from exc
        except OSError as exc:
            raise StoreError(f"{self._address}: the database's password file: {exc}") from exc
        self._retry_at = -1.0
        return self._session

    def _roll_back(self, session: _Connection) -> None:
        """Leave the transaction; a session that can not is given up."""
        try:
            if not session.closed and session.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                with self._watchdog.watching(session.fileno()):
                    session.execute("ROLLBACK")
        except psycopg.Error:
            session.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except psycopg.IntegrityError as exc:
            raise StoreConflict(f"{self._address}: {_reason(exc)}; nothing was written") from exc
        except psycopg.Error as exc:
            raise StoreError(f"{self._address}: the database can not be used: {_reason(exc)}") from exc


class _PostgresTransaction:
    """Statements between BEGIN and COMMIT."""

    def __init__(self, session: _Connection, watchdog: Watchdog) -> None:
        self._session = session
        self._watchdog = watchdog

    def execute(self, sql: str, parameters: Parameters = ()) -> int:
        with self._watchdog.watching(self._session.fileno()):
            return _execute(self._session, sql, parameters).rowcount

    def executemany(self, sql: str, rows: Iterable[Parameters]) -> None:
        with self._watchdog.watching(self._session.fileno()), self._session.cursor() as cursor:
            cursor.executemany(_placeholders(sql), rows)

    def query(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        with self._watchdog.watching(self._session.fileno()):
            return _rows(_execute(self._session, sql, parameters))


class _PostgresSnapshot:
    """Reads of one moment."""

    def __init__(self, session: _Connection) -> None:
        self._session = session

    def rows(self, sql: str) -> Iterator[Row]:
        with self._session.cursor(name="snapshot") as cursor:  # rows stay with the server until they are wanted
            yield from cursor.execute(_placeholders(sql))


def _execute(session: _Connection, sql: str, parameters: Parameters) -> _Cursor:
    # Without parameters there is nothing to translate, and several statements may go at once.
    return session.execute(_placeholders(sql), parameters) if parameters else session.execute(sql.encode())


def _placeholders(sql: str) -> bytes:
    return sql.replace("%", "%%").replace("?", "%s").encode()


def _rows(cursor: _Cursor) -> list[Row]:
    return cursor.fetchall()


def _reason(error: psycopg.Error) -> str:
    """The server's words on one line; libpq never quotes a password in them."""
    text = error.diag.message_primary or str(error) or type(error).__name__
    text = " ".join(text.split())
    return text if len(text) <= _MAX_REASON else text[:_MAX_REASON] + "..."
