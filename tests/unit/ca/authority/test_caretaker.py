"""What the server does about its keys by itself, and how it asks for what it can not do."""

import logging
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ca.authority import hierarchy
from ca.authority.caretaker import Caretaker
from ca.authority.errors import AuthorityError, StoreError
from ca.authority.root_succession import RootSuccession
from ca.authority.signer import Signer
from ca.authority.store import Store
from ca.authority.succession import Succession
from tests.authority_builder import PASSPHRASE, Authority, make_authority

DAY = timedelta(days=1)


class Desk:
    def __init__(self, directory: Path) -> None:
        self.at = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
        self.authority: Authority = make_authority(directory, at=self.at)
        self.store = Store.open(self.authority.config.database)
        self.signer = Signer(hierarchy=self.authority.hierarchy, ttl=timedelta(hours=1))
        self.succession = Succession(config=self.authority.config, store=self.store, passphrase=PASSPHRASE)
        self.caretaker = Caretaker(
            config=self.authority.config,
            store=self.store,
            passphrase=PASSPHRASE,
            signer=self.signer,
            utc_now=lambda: self.at,
        )

    def take_the_root_key_away(self) -> None:
        (self.authority.config.keys_dir / f"{self.store.authorities()[0].key_id}.pem").unlink()

    def look_after(self, time: timedelta) -> float:
        self.at += time
        return self.caretaker.look()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    with closing(made.store):
        yield made


def logged(caplog: pytest.LogCaptureFixture, event: str) -> list[tuple[str, dict[str, Any]]]:
    return [(each.levelname, each.__dict__["fields"]) for each in caplog.records if each.getMessage() == event]


def test_the_signer_goes_on_with_what_the_server_has_rotated(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ringfence.ca")
    first = desk.signer.hierarchy
    assert desk.look_after(DAY) == 60
    assert desk.signer.hierarchy is first
    desk.look_after(182 * DAY)
    assert desk.signer.hierarchy is first
    desk.look_after(111 * DAY)
    assert desk.signer.hierarchy.issuer_key_id != first.issuer_key_id
    assert [event for event in ("intermediate_prepared", "intermediate_activated") if logged(caplog, event)] != []
    assert logged(caplog, "rotation_due") == []


def test_a_clock_that_was_wrong_for_a_while_leaves_an_authority_that_signs(desk: Desk) -> None:
    desk.look_after(400 * DAY)  # past the end of the intermediate
    desk.look_after(timedelta(minutes=2))
    desk.look_after(-400 * DAY)
    issuer = desk.signer.hierarchy.issuer.certificate
    assert issuer.not_valid_before_utc <= desk.at < issuer.not_valid_after_utc
    loaded = hierarchy.load(desk.authority.config, desk.store, passphrase=PASSPHRASE, at=desk.at)
    assert loaded.issuer.certificate == issuer


def test_a_wrong_clock_that_nobody_can_undo_here_is_named_with_the_remedy(desk: Desk) -> None:
    desk.look_after(400 * DAY)
    desk.take_the_root_key_away()
    desk.look_after(-400 * DAY)
    with pytest.raises(AuthorityError, match=r"set the clock; or, .* ringfence ca rotate intermediate --force"):
        hierarchy.load(desk.authority.config, desk.store, passphrase=PASSPHRASE, at=desk.at)


def test_what_needs_an_operator_is_asked_for_once_an_hour_and_as_an_error_once_it_is_late(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    desk.take_the_root_key_away()
    desk.look_after(183 * DAY)
    for _ in range(10):
        desk.look_after(timedelta(minutes=10))
    assert [level for level, _ in logged(caplog, "rotation_due")] == ["WARNING"] * 2
    desk.look_after(110 * DAY)
    level, fields = logged(caplog, "rotation_due")[-1]
    assert (level, fields["what"]) == ("ERROR", "prepare the next intermediate")


def test_a_new_root_is_in_the_signers_bundle_and_in_bundle_pem(desk: Desk) -> None:
    RootSuccession(desk.succession).prepare(at=desk.at)
    desk.authority.config.bundle_file.unlink()  # of another replica, which has not heard of it
    desk.look_after(timedelta(seconds=1))
    assert len(desk.signer.roots) == 2
    assert desk.authority.config.bundle_file.read_bytes().count(b"BEGIN CERTIFICATE") == 2


def test_a_replica_that_does_not_lead_rotates_nothing_and_follows(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "is_leader", lambda _: False)
    desk.look_after(300 * DAY)
    assert desk.signer.hierarchy.issuer_key_id == desk.authority.hierarchy.issuer_key_id
    key_id = desk.succession.prepare_intermediate(at=desk.at)
    desk.succession.activate_intermediate(key_id, at=desk.at)
    desk.look_after(timedelta(seconds=1))
    assert desk.signer.hierarchy.issuer_key_id == key_id


def test_a_database_that_is_away_is_logged_and_asked_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(_: Store) -> bool:
        raise StoreError("the database can not be used: it is away")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "is_leader", away)
        assert 0 < desk.look_after(300 * DAY) <= 60
    assert logged(caplog, "rotation_failed")[0][1]["why"].endswith("it is away")
    desk.look_after(timedelta(seconds=60))
    assert desk.signer.hierarchy.issuer_key_id != desk.authority.hierarchy.issuer_key_id


def test_what_can_not_be_loaded_leaves_the_signer_as_it_is(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> hierarchy.Hierarchy:
        raise AuthorityError("wrong passphrase, or the file is damaged")

    with monkeypatch.context() as patch:
        patch.setattr(hierarchy, "load", broken)
        desk.look_after(300 * DAY)
    assert desk.signer.hierarchy is desk.authority.hierarchy
    assert "wrong passphrase" in logged(caplog, "hierarchy_not_loaded")[0][1]["why"]
    desk.look_after(timedelta(seconds=60))
    assert desk.signer.hierarchy is not desk.authority.hierarchy
