"""Whom the rotation of a root waits for, by the journal."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest

from ca.authority.records import CertificateRecord
from ca.authority.store import Store
from ca.authority.store.authorities import last_not_after
from ca.authority.store.live_nodes import live_nodes

AT: Final = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
HOUR: Final = timedelta(hours=1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path / "authority.db", create=True)
    yield opened
    opened.close()


def journal(store: Store, node: str, identity: str, *, at: datetime, ends: datetime, issuer: str = "i1") -> None:
    record = CertificateRecord(
        serial=store.certificate_count() + 1,
        identity=f"spiffe://cluster.local/{identity}",
        node=node,
        not_before=at,
        not_after=ends,
        issued_at=at,
        attestation="join_token",
        requester="",
        issuer_key_id=issuer,
    )
    store.journal([record])


def test_nobody_is_alive_in_an_empty_journal(store: Store) -> None:
    assert live_nodes(store.database, trust_domain="cluster.local", at=AT) == {}


def test_a_node_is_alive_until_the_last_node_certificate_that_it_got_ends(store: Store) -> None:
    for hour in range(3):
        journal(store, "node-b", "ringfence/node/node-b", at=AT + hour * HOUR, ends=AT + (hour + 1) * HOUR)
    journal(store, "node-a", "ringfence/node/node-a", at=AT, ends=AT + HOUR)
    found = live_nodes(store.database, trust_domain="cluster.local", at=AT + HOUR / 2)
    assert found == {"node-a": AT + HOUR, "node-b": AT + 3 * HOUR}
    assert list(live_nodes(store.database, trust_domain="cluster.local", at=AT + HOUR)) == ["node-b"]
    assert live_nodes(store.database, trust_domain="cluster.local", at=AT + 3 * HOUR) == {}


def test_certificates_of_workloads_and_of_the_authority_keep_no_node_alive(store: Store) -> None:
    journal(store, "", "ringfence/ca", at=AT, ends=AT + HOUR)
    journal(store, "node-a", "ringfence/node/node-a", at=AT - 2 * HOUR, ends=AT - HOUR)
    journal(store, "node-a", "ns/default/sa/web", at=AT, ends=AT + HOUR)
    assert live_nodes(store.database, trust_domain="cluster.local", at=AT) == {}


def test_the_last_certificate_of_an_issuer_is_the_one_that_ends_last(store: Store) -> None:
    journal(store, "node-a", "ns/default/sa/web", at=AT, ends=AT + 2 * HOUR)
    journal(store, "node-a", "ns/default/sa/web", at=AT, ends=AT + HOUR)
    journal(store, "node-a", "ns/default/sa/web", at=AT, ends=AT + 3 * HOUR, issuer="i2")
    assert last_not_after(store.database, "i1") == AT + 2 * HOUR
    assert last_not_after(store.database, "i3") is None
