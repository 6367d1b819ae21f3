"""What the authority remembers of revocations and acknowledgements, on both databases."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest

from ca.authority.errors import AuthorityError, Refusal
from ca.authority.records import CertificateRecord, TokenRecord
from ca.authority.revocation import RevocationGuard
from ca.authority.store import Store
from ca.authority.store.location import DatabaseLocation
from ca.authority.store.trust import AgentRecord, bump
from ca.messages import RefusalCode
from ca.spiffe import SpiffeId
from ca.trust import RevocationKind

AT: Final = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
HOUR: Final = timedelta(hours=1)
SKEW: Final = timedelta(seconds=60)
WEB: Final = SpiffeId.workload("cluster.local", "default", "web")
NODE: Final = SpiffeId.node("cluster.local", "node-1")


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    location: DatabaseLocation = tmp_path / "authority.db"
    if request.param == "postgresql":
        location = request.getfixturevalue("address")
    opened = Store.open(location, create=True)
    yield opened
    opened.close()


def issue(
    store: Store,
    serial: int,
    *,
    identity: SpiffeId = WEB,
    node: str = "node-1",
    at: datetime = AT,
    ttl: timedelta = HOUR,
) -> None:
    record = CertificateRecord(
        serial=serial,
        identity=str(identity),
        node=node,
        not_before=at - SKEW,
        not_after=at + ttl,
        issued_at=at,
        attestation="node_certificate",
        requester="10.0.0.1:4000",
        issuer_key_id="ab",
    )
    store.journal([record])


def refusal(store: Store, identity: SpiffeId, serial: int) -> Refusal | None:
    try:
        RevocationGuard(store).require_certificate(identity, serial)
    except Refusal as found:
        assert found.code is RefusalCode.REVOKED
        return found
    return None


def test_every_change_counts_once_and_what_fails_does_not(store: Store) -> None:
    issue(store, 7)
    assert store.trust.version() == 1
    store.revocations.revoke_identity(str(WEB), at=AT, why="")
    assert store.trust.version() == 2
    for _ in range(2):
        with pytest.raises(AuthorityError):
            store.revocations.revoke_serial(99, at=AT, why="")
    assert store.trust.version() == 2
    store.revocations.undo(RevocationKind.IDENTITY, str(WEB))
    with store.database.transaction() as transaction:
        assert bump(transaction) == 4
    assert store.trust.version() == 4


def test_a_serial_is_revoked_until_nobody_accepts_the_certificate_any_more(store: Store) -> None:
    issue(store, 7)
    issue(store, 8)
    store.revocations.revoke_serial(7, at=AT, why="leaked")

    (distributed,) = store.revocations.to_distribute()
    assert distributed.kind is RevocationKind.SERIAL
    assert int(distributed.value, 16) == 7
    assert distributed.until == AT + HOUR + SKEW
    assert "leaked" in str(refusal(store, WEB, 7))
    assert refusal(store, WEB, 8) is None

    assert store.revocations.forget_expired(at=AT + HOUR + SKEW) == 0
    version = store.trust.version()
    assert store.revocations.forget_expired(at=AT + HOUR + SKEW + timedelta(seconds=1)) == 1
    assert store.revocations.to_distribute() == ()
    assert store.trust.version() == version + 1
    assert store.revocations.forget_expired(at=AT + 2 * HOUR) == 0
    assert store.trust.version() == version + 1  # agents are not woken for nothing


def test_a_serial_that_nobody_was_issued_or_that_has_expired_is_an_error_with_a_way_out(store: Store) -> None:
    issue(store, 7)
    with pytest.raises(AuthorityError, match=r"0{39}9: this authority has not issued it.*revoke its identity"):
        store.revocations.revoke_serial(9, at=AT, why="")
    with pytest.raises(AuthorityError, match="expired at 2026-11-22T13:00:00Z"):
        store.revocations.revoke_serial(7, at=AT + 2 * HOUR, why="")


def test_a_revoked_identity_stays_so_until_it_is_undone(store: Store) -> None:
    issue(store, 7)
    with pytest.raises(AuthorityError, match=r"is it spelt right\?.*--unseen"):
        store.revocations.revoke_identity("spiffe://cluster.local/ns/a/sa/wbe", at=AT, why="")
    store.revocations.revoke_identity("spiffe://cluster.local/ns/a/sa/later", at=AT, why="", unseen=True)
    assert store.revocations.revoke_identity(str(WEB), at=AT, why="").certificates == 1

    store.revocations.forget_expired(at=AT + timedelta(days=400))
    revoked = RevocationGuard(store).current()
    with pytest.raises(Refusal, match="is revoked since 2026-11-22T12:00:00Z"):
        revoked.require_identity(WEB)
    assert refusal(store, WEB, 8) is not None  # also a certificate that it had elsewhere

    store.revocations.undo(RevocationKind.IDENTITY, str(WEB))
    RevocationGuard(store).current().require_identity(WEB)
    with pytest.raises(AuthorityError, match="is not revoked"):
        store.revocations.undo(RevocationKind.IDENTITY, str(WEB))


def test_revoking_again_keeps_the_first_time_and_takes_the_newer_reason(store: Store) -> None:
    issue(store, 7)
    store.revocations.revoke_identity(str(WEB), at=AT, why="a guess")
    store.revocations.revoke_identity(str(WEB), at=AT + HOUR, why="it is certain")
    (found,) = store.revocations.read(at=AT)
    assert (found.at, found.why) == (AT, "it is certain")


def test_a_revoked_node_loses_what_it_was_issued_and_its_tokens(store: Store) -> None:
    issue(store, 1, identity=NODE)
    issue(store, 2)
    issue(store, 3, at=AT - 2 * HOUR)  # expired
    issue(store, 4, node="node-2")
    for name, token in (("node-1", b"a" * 32), ("node-2", b"b" * 32)):
        store.add_token(TokenRecord(token_hash=token, node=name, expires_at=AT + HOUR), at=AT)

    found = store.revocations.revoke_node("node-1", at=AT, why="stolen")

    assert found.certificates == 2
    (distributed,) = store.revocations.to_distribute()
    assert set(distributed.serials) == {1, 2}
    assert refusal(store, NODE, 1) is not None
    assert refusal(store, WEB, 4) is None
    assert store.token(b"a" * 32) is None
    assert store.token(b"b" * 32) is not None
    with pytest.raises(Refusal, match="the node node-1 is revoked"):
        RevocationGuard(store).current().require_admitted("node-1")
    RevocationGuard(store).current().require_admitted("node-2")


def test_a_revoked_node_is_shut_out_for_good_and_agents_forget_its_certificates_when_they_have_ended(
    store: Store,
) -> None:
    issue(store, 1, identity=NODE)
    store.revocations.revoke_node("node-1", at=AT, why="")
    assert store.revocations.forget_expired(at=AT + 2 * HOUR) == 1
    assert store.revocations.to_distribute() == ()
    with pytest.raises(Refusal):
        RevocationGuard(store).current().require_admitted("node-1")
    store.revocations.undo(RevocationKind.NODE, "node-1")
    RevocationGuard(store).current().require_admitted("node-1")


def test_a_node_that_came_back_by_a_token_is_served_and_what_was_stolen_is_not(store: Store) -> None:
    issue(store, 1, identity=NODE)
    store.revocations.revoke_node("node-1", at=AT, why="")
    issue(store, 2, identity=NODE, at=AT + timedelta(minutes=5))  # bought with a token made since
    assert refusal(store, NODE, 1) is not None
    assert refusal(store, NODE, 2) is None


def test_of_a_node_that_is_shut_out_only_what_the_journal_knows_is_believed(store: Store) -> None:
    """A certificate whose record was lost with a restored backup could not be found when the node was revoked."""
    issue(store, 1, identity=NODE)
    assert refusal(store, NODE, 99) is None
    store.revocations.revoke_node("node-1", at=AT, why="")
    assert refusal(store, NODE, 99) is not None


def test_an_unknown_node_is_an_error_and_one_that_only_has_a_token_is_not(store: Store) -> None:
    with pytest.raises(AuthorityError, match=r"node nod-1: it was never issued anything.*ringfence ca status"):
        store.revocations.revoke_node("nod-1", at=AT, why="")
    store.add_token(TokenRecord(token_hash=b"a" * 32, node="node-9", expires_at=AT + HOUR), at=AT)
    assert store.revocations.revoke_node("node-9", at=AT, why="").certificates == 0


def test_more_than_agents_can_be_told_is_refused_and_changes_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ca.authority.store.revocations._MOST_SERIALS", 2)
    monkeypatch.setattr("ca.authority.store.revocations._MOST_BYTES", 300)
    for serial in (1, 2, 3):
        issue(store, serial)
    with pytest.raises(AuthorityError, match="more than 2 would be revoked"):
        store.revocations.revoke_node("node-1", at=AT, why="")
    assert store.revocations.read(at=AT) == []

    store.revocations.revoke_serial(1, at=AT, why="x" * 100)
    with pytest.raises(AuthorityError, match="more revocations than agents can be told"):
        store.revocations.revoke_serial(2, at=AT, why="x" * 100)
    assert len(store.revocations.read(at=AT)) == 1


def test_acknowledgements_of_many_agents_are_kept_by_node(store: Store) -> None:
    store.trust.acknowledge("node-2", 3, at=AT, address="10.0.0.2")
    again = AgentRecord(node="node-2", version=4, seen_at=AT + HOUR, address="10.0.0.3")
    other = AgentRecord(node="node-1", version=1, seen_at=AT, address="10.0.0.1")
    store.trust.acknowledge_all([again, other])
    assert store.trust.agents() == [other, again]
    assert store.trust.version() == 1  # an acknowledgement changes nothing for the others


def test_the_guard_reads_again_only_when_something_changed(store: Store) -> None:
    issue(store, 7)
    guard = RevocationGuard(store)
    before = guard.current()
    assert guard.current() is before
    store.revocations.revoke_serial(7, at=AT, why="")
    assert guard.current() is not before
