"""Federated trust domains in the store, on both databases."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ca.authority.errors import StoreConflict
from ca.authority.federation.relation import EndpointUrl, Profile, Relation
from ca.authority.store import Store
from ca.authority.store.location import DatabaseLocation
from ca.spiffe import SpiffeId
from tests.bundle_server import make_bundle
from tests.certificates import make_root

_AT = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


@pytest.fixture(params=["sqlite", "postgresql"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> DatabaseLocation:
    if request.param == "sqlite":
        (tmp_path / "keys").mkdir()
        return tmp_path / "authority.db"
    found: DatabaseLocation = request.getfixturevalue("address")
    return found


@pytest.fixture
def store(location: DatabaseLocation) -> Iterator[Store]:
    opened = Store.open(location, create=True)
    yield opened
    opened.close()


def _relation(trust_domain: str = "other.example") -> Relation:
    return Relation(
        trust_domain=trust_domain,
        url=EndpointUrl("ca.example", 15013, "/"),
        profile=Profile.HTTPS_SPIFFE,
        endpoint_id=SpiffeId.authority(trust_domain),
        added_at=_AT,
    )


def test_a_relation_lives_its_life(store: Store) -> None:
    relation, version = _relation(), store.trust.version()
    first, second = (make_bundle(make_root("other.example"), sequence=number) for number in (2**64 - 2, 2**64 - 1))
    store.federation.add(relation, first, check=lambda _: None)
    later = _AT + timedelta(seconds=300)
    assert not store.federation.polled(relation, first, in_force=first, at=_AT, next_at=later)
    assert store.federation.polled(relation, second, in_force=first, at=_AT, next_at=later)
    store.federation.poll_failed(relation, "no answer", next_at=later)
    (domain,) = store.federation.domains()
    assert (domain.relation, domain.bundle, domain.polled_at) == (relation, second, _AT)
    assert (domain.next_poll_at, domain.failures, domain.problem) == (later, 1, "no answer")
    assert store.federation.refresh(None, at=_AT) == 1
    assert store.federation.remove("other.example")
    assert store.federation.domains() == []
    assert store.trust.version() == version + 3


def test_one_trust_domain_is_never_there_twice(store: Store) -> None:
    store.federation.add(_relation(), None, check=lambda _: None)
    with pytest.raises(StoreConflict):
        store.federation.add(_relation(), None, check=lambda _: None)
    assert len(store.federation.domains()) == 1


def test_they_are_listed_by_name(store: Store) -> None:
    for name in ("c.example", "a.example", "b.example"):
        store.federation.add(_relation(name), None, check=lambda _: None)
    assert [domain.trust_domain for domain in store.federation.domains()] == ["a.example", "b.example", "c.example"]
