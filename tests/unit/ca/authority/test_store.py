"""The journal and the tokens in SQLite."""

import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ca.authority.errors import AuthorityError, StoreConflict
from ca.authority.records import CertificateRecord, TokenRecord
from ca.authority.store import Store, TokenAlreadyUsed

AT = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def record(
    serial: int, *, node: str = "node-1", identity: str = "spiffe://cluster.local/ns/a/sa/b"
) -> CertificateRecord:
    return CertificateRecord(
        serial=serial,
        identity=identity,
        node=node,
        not_before=AT,
        not_after=AT + timedelta(hours=1),
        issued_at=AT,
        attestation="node_certificate",
        requester="[::1]:4000",
        issuer_key_id="ab",
    )


def token(node: str = "node-1", *, expires_in_s: int = 600, token_hash: bytes = b"h" * 32) -> TokenRecord:
    return TokenRecord(token_hash=token_hash, node=node, expires_at=AT + timedelta(seconds=expires_in_s))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Store.open(tmp_path / "authority.db", create=True).close()
    return tmp_path / "authority.db"


def test_what_was_journalled_is_read_back_by_another_process_to_the_letter(path: Path) -> None:
    written = [record(1), record((1 << 159) - 1, node="node-2")]
    Store.open(path).journal(written)
    assert Store.open(path).certificates() == written
    assert Store.open(path).certificates(node="node-2") == written[1:]


def test_a_serial_is_never_journalled_twice(path: Path) -> None:
    store = Store.open(path)
    store.journal([record(1)])
    with pytest.raises(StoreConflict):
        store.journal([record(2), record(1)])
    assert [each.serial for each in store.certificates()] == [1]


def test_a_token_is_used_up_with_the_certificate_that_it_buys(path: Path) -> None:
    store = Store.open(path)
    store.add_token(token(), at=AT)
    store.journal([record(1)], token_hash=b"h" * 32, at=AT)

    found = store.token(b"h" * 32)
    assert found is not None
    assert found.used_at == AT
    assert store.pending_tokens(at=AT) == []


def test_of_two_who_use_one_token_only_the_first_is_journalled(path: Path) -> None:
    first, second = Store.open(path), Store.open(path)
    first.add_token(token(), at=AT)
    first.journal([record(1)], token_hash=b"h" * 32, at=AT)
    with pytest.raises(TokenAlreadyUsed):
        second.journal([record(2)], token_hash=b"h" * 32, at=AT)
    assert [each.serial for each in first.certificates()] == [1]


def test_pending_tokens_are_those_that_can_still_be_used(path: Path) -> None:
    store = Store.open(path)
    store.add_token(token("late", expires_in_s=900, token_hash=b"1"), at=AT)
    store.add_token(token("soon", expires_in_s=60, token_hash=b"2"), at=AT)
    store.add_token(token("gone", expires_in_s=-1, token_hash=b"3"), at=AT)
    assert [each.node for each in store.pending_tokens(at=AT)] == ["soon", "late"]


def test_tokens_long_expired_are_forgotten(path: Path) -> None:
    store = Store.open(path)
    store.add_token(token(token_hash=b"old"), at=AT)
    store.add_token(token(token_hash=b"new"), at=AT + timedelta(days=2))
    assert store.token(b"old") is None


def test_a_record_is_on_the_disk_when_journal_returns(path: Path) -> None:
    store = Store.open(path)
    assert store.database.query("PRAGMA synchronous") == [(2,)]  # FULL
    assert store.database.query("PRAGMA journal_mode") == [("wal",)]


def test_nodes_are_summed_up(path: Path) -> None:
    store = Store.open(path)
    store.journal([record(1, node=""), record(2, node="b"), record(3, node="a"), record(4, node="a")])
    assert [(each.node, each.certificates) for each in store.nodes()] == [("a", 2), ("b", 1)]
    assert store.certificate_count() == 4


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
