"""Copy everything from one database into another, whichever they are: backups, and a move to PostgreSQL.

What is copied is one moment of the source.  Both have the same schema version.
Signing keys are not copied: where they belong depends on the target.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

from ca.authority.store.database import Database, Row, Transaction
from ca.authority.store.sqlite import SqliteDatabase

_BATCH_ROWS: Final = 1000
_NOT_COPIED: Final = ("schema_version", "signing_keys")


def copy_tables(
    source: Database, target: Database, *, layout: SqliteDatabase, before: Callable[[Transaction], None] | None = None
) -> None:
    """Replace the rows of ``target`` by those of ``source``, in one transaction.

    ``layout`` is whichever of the two is SQLite: it says what tables and columns
    there are.  ``before`` does more in the same transaction of ``target``; what
    it raises leaves everything as it was.

    Raises:
        StoreError: one of them can not be used; nothing was changed.
    """
    tables = tables_of(layout)
    with source.snapshot() as snapshot, target.transaction() as transaction:
        if before is not None:
            before(transaction)
        for table, columns in tables.items():
            names = ", ".join(columns)
            insert = f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608
            transaction.execute(f"DELETE FROM {table}")  # noqa: S608 - names come from our own migrations
            rows = snapshot.rows(f"SELECT {names} FROM {table} ORDER BY rowid")  # noqa: S608
            for batch in _batches(rows):
                transaction.executemany(insert, batch)


def tables_of(layout: SqliteDatabase) -> dict[str, list[str]]:
    """Every table that is copied, with its columns."""
    found = layout.query(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%' ORDER BY name"
    )
    return {
        name: [column for (column,) in layout.query("SELECT name FROM pragma_table_info(?) ORDER BY cid", (name,))]
        for (name,) in found
        if name not in _NOT_COPIED
    }


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while batch := list(islice(rows, _BATCH_ROWS)):
        yield batch
