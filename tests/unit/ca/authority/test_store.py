"""What only the SQLite file has; what both databases promise is in tests/stream/ca/test_stores.py."""

import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

from ca.authority.errors import AuthorityError
from ca.authority.store import Store
from ca.authority.store.migrations import MIGRATIONS

VERSION_1: Final = Path(__file__).with_name("authority_v1.sql")
AT: Final = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Store.open(tmp_path / "authority.db", create=True).close()
    return tmp_path / "authority.db"


def test_a_record_is_on_the_disk_when_journal_returns(path: Path) -> None:
    store = Store.open(path)
    assert store.database.query("PRAGMA synchronous") == [(2,)]  # FULL
    assert store.database.query("PRAGMA journal_mode") == [("wal",)]


def test_there_is_nothing_to_open_before_init(tmp_path: Path) -> None:
    with pytest.raises(AuthorityError, match="ringfence ca init"):
        Store.open(tmp_path / "authority.db")


def test_a_file_that_is_no_database_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "authority.db").write_bytes(b"garbage" * 1000)
    with pytest.raises(AuthorityError, match=r"authority\.db"):
        Store.open(tmp_path / "authority.db")


def test_a_database_of_a_newer_version_is_not_touched(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO schema_version VALUES (99)")
    connection.close()
    with pytest.raises(AuthorityError, match="newer"):
        Store.open(path)


def test_the_database_is_for_its_owner_only(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_of_the_first_release_keeps_its_journal_and_its_tokens(tmp_path: Path) -> None:
    path = tmp_path / "authority.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(VERSION_1.read_text())
    connection.close()

    for _again in range(2):
        store = Store.open(path)
        assert [(each.node, each.attestation) for each in store.certificates()] == [
            ("node-1", "join_token"),
            ("node-1", "node_certificate"),
        ]
        assert [each.node for each in store.pending_tokens(at=AT)] == ["node-2"]
        used = store.token(b"h" * 32)
        assert used is not None
        assert used.used_at == AT
        assert store.database.query("SELECT max(version) FROM schema_version") == [(len(MIGRATIONS),)]
        store.close()
