"""PostgreSQL as the authority's database: gone and back, and who leads."""

import functools
import signal
import threading
from collections.abc import Iterator, Sized
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest

from ca.authority.errors import AuthorityError, StoreError
from ca.authority.records import CertificateRecord
from ca.authority.store import Store
from ca.authority.store.location import PostgresAddress
from tests.mesh_builder import wait_for
from tests.postgres_server import PostgresServer

AT: Final = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def record(serial: int) -> CertificateRecord:
    return CertificateRecord(
        serial=serial,
        identity="spiffe://cluster.local/ns/a/sa/b",
        node="node-1",
        not_before=AT,
        not_after=AT + timedelta(hours=1),
        issued_at=AT,
        attestation="node_certificate",
        requester="[::1]:4000",
        issuer_key_id="ab",
    )


@pytest.fixture
def store(address: PostgresAddress) -> Iterator[Store]:
    opened = Store.open(address, create=True, serving=True)
    yield opened
    opened.close()


@pytest.fixture
def other(address: PostgresAddress, store: Store) -> Iterator[Store]:
    opened = Store.open(address)
    yield opened
    opened.close()


# -- gone and back ----------------------------------------------------------------


def works(store: Store, serial: int) -> bool:
    try:
        store.journal([record(serial)])
    except StoreError:
        return False
    return True


def test_a_restart_of_the_server_between_two_requests_is_not_noticed(store: Store, postgres: PostgresServer) -> None:
    store.journal([record(1)])
    postgres.stop()
    postgres.start()
    store.journal([record(2)])
    assert store.certificate_count() == 2


def test_while_the_server_is_down_every_call_fails_soon_and_later_ones_work(
    store: Store, postgres: PostgresServer
) -> None:
    store.journal([record(1)])
    postgres.stop(signal.SIGQUIT)
    try:
        for call in (store.certificate_count, lambda: store.journal([record(2)]), store.is_leader):
            with pytest.raises(StoreError, match="the database c"):
                call()
    finally:
        postgres.start()
    wait_for("the store to find the server again", lambda: works(store, 2))
    assert [each.serial for each in store.certificates()] == [1, 2]


def test_a_crash_inside_of_a_transaction_is_reported_and_leaves_nothing(store: Store, postgres: PostgresServer) -> None:
    def crash_half_way() -> None:
        with store.database.transaction() as transaction:
            transaction.execute("INSERT INTO schema_version (version) VALUES (?)", (99,))
            postgres.stop(signal.SIGQUIT)
            transaction.query("SELECT 1")

    try:
        with pytest.raises(StoreError):
            crash_half_way()
    finally:
        postgres.start()
    wait_for("the store to find the server again", lambda: works(store, 1))
    assert store.database.query("SELECT count(*) FROM schema_version WHERE version = 99") == [(0,)]


def test_a_crash_before_the_commit_is_never_reported_as_done(store: Store, postgres: PostgresServer) -> None:
    def crash_at_the_end() -> None:
        with store.database.transaction(alone=False) as transaction:
            transaction.execute("INSERT INTO schema_version (version) VALUES (?)", (99,))
            postgres.stop(signal.SIGQUIT)

    try:
        with pytest.raises(StoreError):
            crash_at_the_end()
    finally:
        postgres.start()
    wait_for("the store to find the server again", lambda: works(store, 1))
    assert store.database.query("SELECT count(*) FROM schema_version WHERE version = 99") == [(0,)]


def test_a_server_that_is_stuck_is_not_waited_for_for_ever(store: Store, postgres: PostgresServer) -> None:
    store.journal([record(1)])
    with postgres.stuck(), pytest.raises(StoreError):
        store.journal([record(2)])
    wait_for("the store to find the server again", lambda: works(store, 3))


def test_a_server_that_is_stuck_inside_of_a_transaction_is_not_waited_for_for_ever(
    store: Store, postgres: PostgresServer
) -> None:
    def stuck_half_way() -> None:
        with store.database.transaction() as transaction:
            with postgres.stuck():
                transaction.execute("INSERT INTO schema_version (version) VALUES (?)", (99,))

    with pytest.raises(StoreError):
        stuck_half_way()
    wait_for("the store to find the server again", lambda: works(store, 1))
    assert store.database.query("SELECT count(*) FROM schema_version WHERE version = 99") == [(0,)]


def test_a_server_gives_a_slow_statement_up_where_a_command_waits(store: Store, other: Store) -> None:
    assert store.database.query("SHOW statement_timeout") == [("4s",)]
    assert other.database.query("SHOW statement_timeout") == [("10min",)]
    store.database.query("SELECT set_config('statement_timeout', '50ms', false)")
    with pytest.raises(StoreError, match="statement timeout"):
        store.database.query("SELECT pg_sleep(5)")
    assert works(store, 1)


def test_who_has_to_wait_too_long_for_another_is_told_so_and_can_go_on(store: Store, other: Store) -> None:
    other.database.query("SELECT set_config('lock_timeout', '50ms', false)")
    with store.database.transaction():
        assert not works(other, 1)
    assert works(other, 1)


def test_appends_run_side_by_side_but_never_beside_one_that_is_alone(store: Store, other: Store) -> None:
    other.database.query("SELECT set_config('lock_timeout', '50ms', false)")
    with store.database.transaction(alone=False) as transaction:
        transaction.execute("INSERT INTO signing_keys (key_id, encrypted_pem) VALUES ('a', ?)", (b"x",))
        assert works(other, 1)
        with pytest.raises(StoreError), other.database.transaction():
            pass


def test_a_server_that_does_not_keep_what_it_committed_is_refused(
    address: PostgresAddress, postgres: PostgresServer
) -> None:
    postgres.stop()
    postgres.start("fsync=off")
    try:
        with pytest.raises(AuthorityError, match=r"fsync = off.*set fsync = on"):
            Store.open(address, create=True)
    finally:
        postgres.stop()
        postgres.start()


def test_a_database_whose_commits_do_not_wait_for_the_disk_is_told_to(
    address: PostgresAddress, postgres: PostgresServer
) -> None:
    name = address.url.partition("/ca_")[2].partition("?")[0]
    postgres.execute(f"ALTER DATABASE ca_{name} SET synchronous_commit = off")
    store = Store.open(address, create=True)
    assert store.database.query("SELECT current_setting('synchronous_commit')") == [("on",)]
    store.close()


# -- who leads --------------------------------------------------------------------


def test_one_replica_leads_until_it_is_gone(store: Store, other: Store) -> None:
    assert [store.is_leader(), other.is_leader(), store.is_leader(), other.is_leader()] == [True, False, True, False]
    store.close()
    wait_for("the other to lead", other.is_leader)


def test_a_leader_whose_connection_broke_asks_again(store: Store, other: Store) -> None:
    assert store.is_leader()
    (pid,) = store.database.query("SELECT pg_backend_pid()")[0]
    other.database.query("SELECT pg_terminate_backend(?)", (pid,))
    wait_for("the other to lead", other.is_leader)
    assert not store.is_leader()


def test_two_authorities_in_schemas_of_one_database_both_have_a_leader(
    address: PostgresAddress, postgres: PostgresServer
) -> None:
    opened = []
    for schema in ("east", "west"):
        name = "ca_" + address.url.partition("/ca_")[2].partition("?")[0]
        postgres.execute(f"CREATE SCHEMA {schema}", database=name)
        url = f"{address.url}&options=-csearch_path%3D{schema}"
        opened.append(Store.open(PostgresAddress.parse(url, password_file=None, private=False), create=True))
    assert [each.is_leader() for each in opened] == [True, True]
    opened[0].journal([record(1)])
    assert [each.certificate_count() for each in opened] == [1, 0]
    for each in opened:
        each.close()


# -- threads ------------------------------------------------------------------------


def more_than(items: Sized, count: int) -> bool:
    return len(items) > count


def test_a_store_is_shared_by_threads_also_while_its_connection_breaks(store: Store, postgres: PostgresServer) -> None:
    stop = threading.Event()
    written_serials: list[int] = []

    def journal(first: int) -> None:
        serial = first
        while not stop.is_set():
            if works(store, serial):
                written_serials.append(serial)
            serial += 1

    threads = [threading.Thread(target=journal, args=(number * 1_000_000,)) for number in range(3)]
    for each in threads:
        each.start()
    try:
        for _ in range(3):
            wanted = len(written_serials) + 20
            wait_for("some to be written", functools.partial(more_than, written_serials, wanted))
            postgres.stop(signal.SIGQUIT)
            postgres.start()
    finally:
        stop.set()
        for each in threads:
            each.join()
    wait_for("the store to find the server again", lambda: works(store, 1 << 100))
    assert set(written_serials) <= {each.serial for each in store.certificates()}
