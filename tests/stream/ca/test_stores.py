"""The journal and the tokens, on both databases: what one promises the other does."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ca.authority.errors import AuthorityError, StoreConflict
from ca.authority.keys import read_key, write_key
from ca.authority.records import CertificateRecord, TokenRecord
from ca.authority.store import JournalEntry, Store, TokenAlreadyUsed
from ca.authority.store.database import Dialect
from ca.authority.store.location import DatabaseLocation
from ca.authority.store.migrations import MIGRATIONS, migrate
from ca.csr import new_key

AT = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
HASH = b"h" * 32


@pytest.fixture(params=["sqlite", "postgresql"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> DatabaseLocation:
    if request.param == "sqlite":
        (tmp_path / "keys").mkdir()
        return tmp_path / "authority.db"
    found: DatabaseLocation = request.getfixturevalue("address")
    return found


class Stores:
    """Opens as many as a test wants, and closes them."""

    def __init__(self, location: DatabaseLocation) -> None:
        self.location = location
        self.opened: list[Store] = []

    def another(self, *, create: bool = False) -> Store:
        self.opened.append(Store.open(self.location, create=create))
        return self.opened[-1]


@pytest.fixture
def stores(location: DatabaseLocation) -> Iterator[Stores]:
    made = Stores(location)
    made.another(create=True)
    yield made
    for each in made.opened:
        each.close()


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


def token(node: str = "node-1", *, expires_in_s: int = 600, token_hash: bytes = HASH) -> TokenRecord:
    return TokenRecord(token_hash=token_hash, node=node, expires_at=AT + timedelta(seconds=expires_in_s))


def test_what_was_journalled_is_read_back_by_another_to_the_letter(stores: Stores) -> None:
    awkward = record((1 << 159) - 1, node="node-2", identity="%s ? 'quoted' \\ ü")
    written = [record(1), awkward]
    stores.another().journal(written)
    assert stores.another().certificates() == written
    assert stores.another().certificates(node="node-2") == written[1:]


def test_a_serial_is_never_journalled_twice(stores: Stores) -> None:
    first, second = stores.another(), stores.another()
    first.journal([record(1)])
    with pytest.raises(StoreConflict):
        second.journal([record(2), record(1)])
    assert [each.serial for each in first.certificates()] == [1]
    second.journal([record(3)])


def test_a_token_is_used_up_with_the_certificate_that_it_buys(stores: Stores) -> None:
    store = stores.another()
    store.add_token(token(), at=AT)
    store.journal([record(1)], token_hash=HASH, at=AT)

    found = store.token(HASH)
    assert found is not None
    assert found.used_at == AT
    assert store.pending_tokens(at=AT) == []


def test_a_token_whose_certificate_can_not_be_journalled_is_not_used_up(stores: Stores) -> None:
    store = stores.another()
    store.add_token(token(), at=AT)
    store.journal([record(1)])
    with pytest.raises(StoreConflict):
        store.journal([record(1)], token_hash=HASH, at=AT)
    assert [each.node for each in store.pending_tokens(at=AT)] == ["node-1"]


def test_of_many_who_use_one_token_at_the_same_moment_exactly_one_is_journalled(stores: Stores) -> None:
    first = stores.another()
    everybody = [stores.another() for _ in range(6)]
    gate = threading.Barrier(len(everybody))

    def use(serial: int, store: Store) -> bool:
        gate.wait()
        try:
            store.journal([record(serial)], token_hash=HASH, at=AT)
        except TokenAlreadyUsed:
            return False
        return True

    for attempt in range(10):
        first.add_token(token(token_hash=HASH), at=AT + timedelta(days=2 * attempt))
        with ThreadPoolExecutor(len(everybody)) as pool:
            won = list(pool.map(use, range(attempt * 10, attempt * 10 + len(everybody)), everybody))
        assert sum(won) == 1
        assert first.certificate_count() == attempt + 1
        with first.database.transaction() as transaction:
            transaction.execute("DELETE FROM tokens")


def test_replicas_that_use_up_the_same_tokens_in_groups_never_wait_for_each_other_for_ever(stores: Stores) -> None:
    hashes = [bytes([number]) * 32 for number in range(6)]
    replicas = [stores.another(), stores.another()]
    for token_hash in hashes:
        replicas[0].add_token(token(token_hash=token_hash), at=AT)
    together = threading.Barrier(2)

    def use_all(number: int) -> list[bool]:
        """All of them in one transaction, in opposite orders, and one entry that needs none."""
        order = hashes if number == 0 else hashes[::-1]
        entries = [JournalEntry(records=(record(100 * (number + 1) + each[0]),), token_hash=each) for each in order]
        together.wait()
        written = replicas[number].journal_all([*entries, JournalEntry(records=(record(number + 1),))], at=AT)
        assert written[-1]
        return written[:-1] if number == 0 else written[-2::-1]

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(use_all, range(2))

    assert [one != other for one, other in zip(first, second, strict=True)] == [True] * len(hashes)
    assert len(replicas[0].certificates()) == len(hashes) + 2
    assert replicas[0].pending_tokens(at=AT) == []


def test_pending_tokens_are_those_that_can_still_be_used(stores: Stores) -> None:
    store = stores.another()
    store.add_token(token("late", expires_in_s=900, token_hash=b"1"), at=AT)
    store.add_token(token("soon", expires_in_s=60, token_hash=b"2"), at=AT)
    store.add_token(token("gone", expires_in_s=-1, token_hash=b"3"), at=AT)
    assert [each.node for each in store.pending_tokens(at=AT)] == ["soon", "late"]


def test_tokens_long_expired_are_forgotten(stores: Stores) -> None:
    store = stores.another()
    store.add_token(token(token_hash=b"old"), at=AT)
    store.add_token(token(token_hash=b"new"), at=AT + timedelta(days=2))
    assert store.token(b"old") is None


def test_nodes_are_summed_up(stores: Stores) -> None:
    store = stores.another()
    store.journal([record(1, node=""), record(2, node="b"), record(3, node="a"), record(4, node="a")])
    assert [(each.node, each.certificates) for each in store.nodes()] == [("a", 2), ("b", 1)]
    assert store.certificate_count() == 4


def test_a_block_that_raises_leaves_nothing_and_the_store_usable(stores: Stores) -> None:
    store = stores.another()

    def fail_half_way() -> None:
        with store.database.transaction() as transaction:
            transaction.execute("DELETE FROM schema_version")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert store.database.query("SELECT max(version) FROM schema_version") == [(len(MIGRATIONS),)]
    store.journal([record(1)])


def test_transactions_do_not_nest(stores: Stores) -> None:
    store = stores.another()
    with pytest.raises(AssertionError, match="nest"), store.database.transaction():
        with store.database.transaction():
            pass
    store.journal([record(1)])


def test_what_was_read_alone_still_holds_at_the_commit(stores: Stores) -> None:
    """Each adds one to what it read; if two could read at once, one addition would be lost."""
    everybody = [stores.another() for _ in range(4)]
    with everybody[0].database.transaction() as transaction:
        transaction.execute("CREATE TABLE counter (value INTEGER NOT NULL)")
        transaction.execute("INSERT INTO counter (value) VALUES (0)")

    def add(store: Store) -> None:
        for _ in range(15):
            with store.database.transaction() as transaction:
                value = transaction.query("SELECT value FROM counter")[0][0]
                transaction.execute("UPDATE counter SET value = ?", (value + 1,))

    with ThreadPoolExecutor(len(everybody)) as pool:
        list(pool.map(add, everybody))
    assert everybody[0].database.query("SELECT value FROM counter") == [(60,)]


def test_one_store_serves_threads_one_after_the_other(stores: Stores) -> None:
    store = stores.another()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda serial: store.journal([record(serial)]), range(40)))
    assert store.certificate_count() == 40


def test_a_signing_key_is_kept_encrypted_and_never_replaced(stores: Stores) -> None:
    keys, key = stores.another().keys, new_key()
    write_key(keys, "ab", key, b"a passphrase for tests")

    other = stores.another().keys
    assert b"ENCRYPTED PRIVATE KEY" in other.read("ab")
    assert read_key(other, "ab", b"a passphrase for tests").private_numbers() == key.private_numbers()
    with pytest.raises(AuthorityError, match="wrong passphrase"):
        read_key(other, "ab", b"another passphrase")
    with pytest.raises(FileExistsError):
        write_key(other, "ab", new_key(), b"a passphrase for tests")
    with pytest.raises(AuthorityError, match="cd"):
        other.read("cd")


def test_there_is_nothing_to_open_before_init(location: DatabaseLocation) -> None:
    with pytest.raises(AuthorityError, match="ringfence ca init"):
        Store.open(location)


# -- migrations -------------------------------------------------------------------


def schema_of(store: Store) -> list[Any]:
    if store.database.dialect is Dialect.SQLITE:
        return store.database.query("SELECT name, sql FROM sqlite_schema ORDER BY name")
    return store.database.query(
        "SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns"
        " WHERE table_schema = current_schema() ORDER BY table_name, column_name"
    )


def test_every_version_is_brought_up_to_date_with_its_records(stores: Stores, location: DatabaseLocation) -> None:
    fresh = schema_of(stores.another())
    database = stores.another().database
    for version in range(1, len(MIGRATIONS) + 1):
        drop_everything(stores)
        migrate(database, migrations=MIGRATIONS[:version])
        with database.transaction() as transaction:
            transaction.execute(
                "INSERT INTO certificates (serial, identity, node, not_before, not_after, issued_at, attestation,"
                " requester, issuer_key_id) VALUES ('2a', 'i', 'n', 1, 2, 3, 'a', 'r', 'k')"
            )
            transaction.execute(
                "INSERT INTO tokens (hash, node, created_at, expires_at) VALUES (?, 'n', 1, 2)", (HASH,)
            )
        migrated = Store.open(location)
        stores.opened.append(migrated)
        assert schema_of(migrated) == fresh
        assert [each.serial for each in migrated.certificates()] == [0x2A]
        assert migrated.token(HASH) is not None
        assert migrated.database.query("SELECT max(version) FROM schema_version") == [(len(MIGRATIONS),)]


def drop_everything(stores: Stores) -> None:
    database = stores.opened[0].database
    if database.dialect is Dialect.SQLITE:
        names = database.query(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'",
        )
    else:
        names = database.query("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")
    with database.transaction() as transaction:
        for (name,) in names:
            transaction.execute(f"DROP TABLE {name}")


def test_a_migration_that_fails_leaves_the_old_version_whole(stores: Stores) -> None:
    store = stores.another()
    before = schema_of(store)
    with pytest.raises(AuthorityError):
        migrate(store.database, migrations=(*MIGRATIONS, "CREATE TABLE extra (a TEXT) STRICT; SELECT nonsense"))
    assert schema_of(store) == before
    store.journal([record(1)])


def test_a_database_of_a_newer_version_is_not_touched(stores: Stores, location: DatabaseLocation) -> None:
    with stores.another().database.transaction() as transaction:
        transaction.execute("INSERT INTO schema_version (version) VALUES (99)")
    with pytest.raises(AuthorityError, match=r"schema version 99 is newer.*run the version of Ringfence"):
        Store.open(location)


def test_replicas_that_start_at_once_migrate_once(stores: Stores, location: DatabaseLocation) -> None:
    drop_everything(stores)
    gate = threading.Barrier(4)

    def start(_number: int) -> Store:
        gate.wait()
        return Store.open(location, create=True)

    with ThreadPoolExecutor(4) as pool:
        started = list(pool.map(start, range(4)))
    stores.opened += started
    versions = started[0].database.query("SELECT version FROM schema_version ORDER BY version")
    assert versions == [(number,) for number in range(1, len(MIGRATIONS) + 1)]
