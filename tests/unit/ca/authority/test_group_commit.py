"""Requests that come together: one transaction, and each its own answer."""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ca.authority.placement import PlacementDirectory
from ca.authority.requests import Asked, Requester, RequestHandler
from ca.authority.store import Store
from ca.authority.store.sqlite import SqliteDatabase
from ca.csr import build_csr, new_key
from ca.messages import AttestWithToken, Bundle, GetBundle, Issued, RefusalCode, Refused
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


def asked(account: str, *, count: int = 1, requester: Requester = NODE) -> Asked:
    return Asked(request=sign_request(account, count=count), requester=requester)


def test_requests_that_come_together_share_one_transaction_and_keep_their_order(
    handler: RequestHandler, store: Store
) -> None:
    statements: list[str] = []
    assert isinstance(store.database, SqliteDatabase)
    store.database._connection.set_trace_callback(statements.append)
    group = [
        asked("web", count=2),
        Asked(request=GetBundle(), requester=NODE),
        asked("nobody"),
        asked("web", requester=Requester(address="10.0.0.9:4000", identity=None)),
        asked("web", count=3),
    ]

    replies = handler.handle_all(group, at=AT)

    assert len([each for each in statements if each.startswith("COMMIT")]) == 1
    assert [type(reply) for reply in replies] == [Issued, Bundle, Issued, Refused, Issued]
    issued = [reply for reply in replies if isinstance(reply, Issued)]
    assert [[bool(item.chain_der) for item in reply.certificates] for reply in issued] == [
        [True, True],
        [False],
        [True, True, True],
    ]
    assert store.certificate_count() == 5


def test_a_journal_that_can_not_be_written_fails_all_that_would_be_in_it_and_no_other(
    handler: RequestHandler, store: Store
) -> None:
    store.database.query("PRAGMA query_only=ON")  # as a full disk would

    replies = handler.handle_all([asked("web"), Asked(request=GetBundle(), requester=NODE), asked("web")], at=AT)

    assert [getattr(reply, "code", None) for reply in replies] == [
        RefusalCode.UNAVAILABLE,
        None,
        RefusalCode.UNAVAILABLE,
    ]
    assert store.certificate_count() == 0


def test_of_two_in_one_group_who_use_one_token_one_gets_a_certificate(
    handler: RequestHandler, store: Store, authority: Authority
) -> None:
    token = authority.token("node-1", expires_in_s=10**9)
    stranger = Requester(address="10.0.0.1:4000", identity=None)
    csr_der = build_csr(new_key(), SpiffeId.node(TRUST_DOMAIN, "node-1"))
    attest = Asked(request=AttestWithToken(node="node-1", token=token, csr_der=csr_der), requester=stranger)

    replies = handler.handle_all([attest, asked("web"), attest], at=AT)

    assert [type(reply) for reply in replies] == [Issued, Issued, Refused]
    assert isinstance(replies[2], Refused)
    assert replies[2].code is RefusalCode.TOKEN_INVALID
    assert store.certificate_count() == 2


def test_a_node_that_is_refused_all_the_time_does_not_fill_the_log(
    handler: RequestHandler, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="ringfence.ca"):
        for _ in range(3):
            handler.handle_all([asked("nobody", count=500)], at=AT)
    refused = [record for record in caplog.records if record.getMessage() == "refused"]
    assert 100 <= len(refused) < 400
