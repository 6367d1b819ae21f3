"""What the authority needs of a database, whichever one it is.

SQL is written once, in the words that SQLite and PostgreSQL share, with ``?``
for parameters.  Stay inside of them:

    types       TEXT, INTEGER (64 bits), BLOB; tables end in ``) STRICT``
    upsert      INSERT ... ON CONFLICT (...) DO NOTHING | DO UPDATE SET ...
    row order   every table has ``rowid``, which grows with each insert
    columns     name them in every INSERT; sum() needs CAST(sum(...) AS INTEGER)
    not         ?1, INSERT OR ..., max(a, b), booleans, a ``?`` inside of a literal,
                a parameter whose type nothing tells (``? IS NULL``)

``sqlite.py`` and ``postgres.py`` are the two adapters, and the only doors to
their libraries: what they raise comes out as ``StoreError``.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from enum import StrEnum
from typing import Any, Protocol

Row = tuple[Any, ...]
Parameters = Sequence[str | int | bytes | None]


class Dialect(StrEnum):
    """Which database speaks; only ``migrations.py`` needs to know."""

    SQLITE = "sqlite"
    POSTGRESQL = "postgresql"


class Transaction(Protocol):
    """Statements that take effect all or not at all."""

    def execute(self, sql: str, parameters: Parameters = ()) -> int:
        """Run one statement; returns how many rows it changed."""

    def executemany(self, sql: str, rows: Iterable[Parameters]) -> None:
        """Run one statement once for each row."""

    def query(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Run one SELECT."""


class Snapshot(Protocol):
    """The database as it was at one moment."""

    def rows(self, sql: str) -> Iterator[Row]:
        """Read the rows of one SELECT one after the other, however many there are."""


class Database(Protocol):
    """One connection; owned by whoever opened it, who closes it.  Thread-safe: one thread after the other.

    Every method raises StoreError when the database can not be used now, and
    StoreConflict when a constraint refused the change; nothing was changed
    then, but for a connection that broke during the commit itself: the change
    may then have been made, and is never reported as made.
    """

    @property
    def dialect(self) -> Dialect:
        """Which database it is."""

    def __str__(self) -> str:
        """Where the data is, for errors and status; never with a password."""

    def transaction(self, *, alone: bool = True) -> AbstractContextManager[Transaction]:
        """Commit at the end of the block, roll back when it raises; blocks do not nest.

        ``alone``: no other transaction of any process runs meanwhile, so that
        what was read is still so at the commit.  Without it, appends of several
        replicas run side by side (never beside one that is alone): only for
        statements that are right by themselves, such as an INSERT guarded by a
        constraint or an UPDATE that names the state which it changes.
        """

    def query(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Run one SELECT outside of a transaction; it sees what was committed."""

    def snapshot(self) -> AbstractContextManager[Snapshot]:
        """Read everything as it is at one moment, for as long as it takes; writers go on meanwhile."""

    def is_leader(self) -> bool:
        """Whether this process does the background duties, now: of all replicas on one database at most one does.

        Ask before each duty.  Whoever leads, leads until its connection ends; a
        duty must still look at the state inside of its transaction, since the
        answer can have become old.
        """

    def begin_serving(self) -> None:
        """From now on give up what takes longer than an agent waits; a file is for this server alone.

        Raises:
            AuthorityError: another server has the file.
        """

    def close(self) -> None:
        """Give the connection back; not usable after."""
