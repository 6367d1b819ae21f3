"""JWT keys on both databases: replicas that tend them at the same moment make one key, and all sign with it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest

from ca.authority.jwt import JwtSigner
from ca.authority.jwt_rotation import JwtKeyRecord
from ca.authority.records import AuthorityState
from ca.authority.store import JournalEntry, JwtRecord, Store
from ca.authority.store.jwt_keys import KEEP
from ca.authority.store.location import DatabaseLocation
from tests.authority_builder import PASSPHRASE, workload

AT: Final = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
LIFETIME: Final = timedelta(days=7)
REPLICAS: Final = 4
WEB: Final = workload("web")


@pytest.fixture(params=["sqlite", "postgresql"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[Store]]:
    location: DatabaseLocation = tmp_path / "authority.db"
    if request.param == "sqlite":
        (tmp_path / "keys").mkdir()
    else:
        location = request.getfixturevalue("address")
    opened = [Store.open(location, create=True) for _ in range(REPLICAS)]
    yield opened
    for store in opened:
        store.close()


def tend(signers: list[JwtSigner], at: datetime) -> None:
    """All of them at once, as replicas would that each believe to lead."""
    with ThreadPoolExecutor(REPLICAS) as pool:
        for done in [pool.submit(signer.tend, at=at) for signer in signers]:
            done.result()


def states(keys: list[JwtKeyRecord]) -> list[AuthorityState]:
    return [key.state for key in keys]


def test_replicas_that_tend_at_once_make_one_key_and_all_sign_with_it(stores: list[Store]) -> None:
    signers = [
        JwtSigner(store=store, passphrase=PASSPHRASE, ttl=timedelta(minutes=5), lifetime=LIFETIME) for store in stores
    ]

    def signing() -> set[str]:
        return {signer.sign(WEB, ("db",), ttl=None, at=AT).key_id for signer in signers}

    tend(signers, AT)
    assert states(stores[0].jwt_keys.read()) == [AuthorityState.ACTIVE]
    (first,) = signing()

    tend(signers, AT + LIFETIME / 2)
    assert states(stores[1].jwt_keys.read()) == [AuthorityState.ACTIVE, AuthorityState.PREPARED]
    assert signing() == {first}

    tend(signers, AT + LIFETIME)
    assert states(stores[2].jwt_keys.read()) == [AuthorityState.RETIRING, AuthorityState.ACTIVE]
    (second,) = signing()
    assert second != first

    tend(signers, AT + LIFETIME + timedelta(hours=2))
    assert [key.key_id for key in stores[3].jwt_keys.published()] == [second]
    assert set(stores[0].keys.names()) == {second}


def test_the_journal_of_tokens_is_the_same_on_both(stores: list[Store]) -> None:
    records = [
        JwtRecord(
            token_id=f"{number:032x}",
            identity=str(WEB),
            node="node-1",
            audience=("db", "%s ? 'quoted' \\ ü"),
            issued_at=AT,
            not_after=AT + timedelta(minutes=number),
            key_id="k",
            attestation="node_certificate",
            requester="[::1]:4000",
        )
        for number in range(1, 4)
    ]
    assert stores[0].journal_all([JournalEntry(jwts=tuple(records))], at=AT) == [True]
    assert stores[1].jwt_keys.issued(identity=str(WEB)) == records
    assert stores[1].jwt_keys.prune(at=AT + KEEP + timedelta(minutes=2)) == 1
    assert stores[2].jwt_keys.issued() == records[1:]
