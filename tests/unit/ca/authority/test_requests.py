"""When the authority itself is broken, nothing is handed out."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ca.authority import profile
from ca.authority.errors import StoreError
from ca.authority.placement import PlacementDirectory
from ca.authority.requests import Requester, RequestHandler
from ca.authority.store import Store
from ca.authority.store.sqlite import SqliteDatabase
from ca.messages import Issued, RefusalCode, Refused
from ca.spiffe import SpiffeId
from tests.authority_builder import TRUST_DOMAIN, Authority, make_authority, sign_request

AT = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
NODE = Requester(address="10.0.0.1:4000", identity=SpiffeId.node(TRUST_DOMAIN, "node-1"))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = make_authority(tmp_path, at=AT)
    made.pod("web-1", node="node-1", account="web")
    return made


@pytest.fixture
def store(authority: Authority) -> Iterator[Store]:
    opened = Store.open(authority.config.database)
    yield opened
    opened.close()


@pytest.fixture
def handler(authority: Authority, store: Store) -> RequestHandler:
    placement = PlacementDirectory(trust_domain=TRUST_DOMAIN, directory=authority.config.manifests_dir)
    return RequestHandler(trust_domain=TRUST_DOMAIN, signer=authority.signer, store=store, placement=placement)


def test_one_request_is_one_transaction(handler: RequestHandler, store: Store) -> None:
    statements: list[str] = []
    assert isinstance(store.database, SqliteDatabase)
    store.database._connection.set_trace_callback(statements.append)

    assert isinstance(handler.handle(sign_request("web", count=20), NODE, at=AT), Issued)

    assert len([each for each in statements if each.startswith("COMMIT")]) == 1
    assert store.certificate_count() == 20


def test_what_can_not_be_journalled_is_not_handed_out(handler: RequestHandler, store: Store) -> None:
    store.database.query("PRAGMA query_only=ON")  # as a full disk would

    reply = handler.handle(sign_request("web", count=1), NODE, at=AT)

    assert isinstance(reply, Refused)
    assert reply.code is RefusalCode.UNAVAILABLE
    assert reply.retry_after_s > 0


def test_a_damaged_journal_is_refused_too(handler: RequestHandler, store: Store) -> None:
    with store.database.transaction() as transaction:
        transaction.execute("DROP TABLE certificates")
    with pytest.raises(StoreError):
        store.certificate_count()
    assert isinstance(handler.handle(sign_request("web", count=1), NODE, at=AT), Refused)


def test_a_certificate_that_breaks_its_profile_goes_nowhere(
    handler: RequestHandler, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = profile._key_usage
    monkeypatch.setattr(profile, "_key_usage", lambda *, signs_certificates: usage(signs_certificates=True))

    reply = handler.handle(sign_request("web", count=1), NODE, at=AT)

    assert isinstance(reply, Refused)
    assert reply.code is RefusalCode.INTERNAL
    assert store.certificate_count() == 0
