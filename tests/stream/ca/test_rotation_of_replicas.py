"""Several authorities on one PostgreSQL: one of them rotates, and all of them sign with the same key."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio

from ca.authority import profile
from ca.authority.records import AuthorityKind, AuthorityState
from ca.authority.store import Store
from ca.authority.succession import Succession
from ca.client import load_chain
from tests.authority_builder import PASSPHRASE, Authority, attested, make_authority, sign, workload
from tests.authority_process import Process, running
from tests.postgres_server import PostgresServer

pytestmark = pytest.mark.deadline_s(120)


def of_replicas(directory: Path, postgres: PostgresServer, *, at: datetime) -> Authority:
    made = make_authority(directory, at=at, database_url=postgres.url(postgres.new_database()))
    made.pod("web-1", node="node-1", account="web")
    return made


def events(process: Process, name: str) -> int:
    return sum(line["event"] == name for line in process.log)


async def test_an_intermediate_that_is_due_is_prepared_by_one_and_signed_with_by_all(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    authority = of_replicas(tmp_path, postgres, at=datetime.now(UTC) - timedelta(days=300))
    async with (
        running(authority) as (first, first_port),
        running(authority.replica("-2")) as (second, second_port),
        trio.open_nursery() as nursery,
    ):
        for process in (first, second):
            nursery.start_soon(process.read_on)
        store = Store.open(authority.config.database)
        try:
            own = await attested(authority, authority.client(first_port), "node-1")
            signs = Succession(config=authority.config, store=store, passphrase=PASSPHRASE).records()
            intermediates = [each for each in signs if each.kind is AuthorityKind.INTERMEDIATE]
            assert [each.state for each in intermediates] == [AuthorityState.RETIRING, AuthorityState.ACTIVE]
            for port in (first_port, second_port):
                issued = await sign(authority.client(port), own, workload("web"))
                issuer = load_chain(issued.certificates[0].chain_der)[1]
                assert profile.key_id(issuer) == intermediates[1].key_id
        finally:
            store.close()
        assert events(first, "intermediate_prepared") + events(second, "intermediate_prepared") == 1
        nursery.cancel_scope.cancel()


async def test_what_an_operator_rotates_is_signed_with_by_all_within_seconds(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    authority = of_replicas(tmp_path, postgres, at=datetime.now(UTC))
    async with (
        running(authority) as (first, first_port),
        running(authority.replica("-2")) as (second, second_port),
        trio.open_nursery() as nursery,
    ):
        for process in (first, second):
            nursery.start_soon(process.read_on)
        own = await attested(authority, authority.client(first_port), "node-1")
        store = Store.open(authority.config.database)
        try:
            succession = Succession(config=authority.config, store=store, passphrase=PASSPHRASE)
            key_id = succession.prepare_intermediate(at=datetime.now(UTC))
            succession.activate_intermediate(key_id, at=datetime.now(UTC))
        finally:
            store.close()
        for port in (first_port, second_port):
            with trio.fail_after(30):
                issuer = ""
                while issuer != key_id:
                    await trio.sleep(0.1)
                    issued = await sign(authority.client(port), own, workload("web"))
                    issuer = profile.key_id(load_chain(issued.certificates[0].chain_der)[1])
        nursery.cancel_scope.cancel()
