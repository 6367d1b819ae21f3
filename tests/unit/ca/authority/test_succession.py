"""The steps of a rotation: each happens once, whoever does it, and a step that was cut off can be done again."""

import dataclasses
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest
from cryptography import x509

from ca.authority import hierarchy, rotation
from ca.authority.caretaker import catch_up
from ca.authority.errors import AuthorityError
from ca.authority.jwt import JwtSigner
from ca.authority.keys import KeyFile
from ca.authority.records import AuthorityKind, AuthorityState, CertificateRecord
from ca.authority.root_succession import RootSuccession
from ca.authority.store import Store
from ca.authority.succession import Overtaken, RootAccess, Succession
from tests.authority_builder import PASSPHRASE, Authority, make_authority

AT: Final = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
MINUTE: Final = timedelta(minutes=1)
YEAR: Final = timedelta(days=365)


class Desk:
    """An authority, its store and what changes its hierarchy."""

    def __init__(self, directory: Path) -> None:
        self.authority: Authority = make_authority(directory, at=AT)
        self.config = self.authority.config
        self.store = Store.open(self.config.database)
        self.succession = Succession(config=self.config, store=self.store, passphrase=PASSPHRASE)
        self.roots = RootSuccession(self.succession)

    def states(self, kind: AuthorityKind) -> list[str]:
        return [str(record.state) for record in self.succession.records() if record.kind is kind]

    def load(self, at: datetime) -> hierarchy.Hierarchy:
        return hierarchy.load(self.config, self.store, passphrase=PASSPHRASE, at=at)

    def issue(self, issuer_key_id: str, *, ends: datetime) -> None:
        record = CertificateRecord(
            serial=self.store.certificate_count() + 1,
            identity="spiffe://cluster.local/ns/default/sa/web",
            node="node-1",
            not_before=AT,
            not_after=ends,
            issued_at=AT,
            attestation="node_certificate",
            requester="",
            issuer_key_id=issuer_key_id,
        )
        self.store.journal([record])

    def bundle(self) -> list[x509.Certificate]:
        return x509.load_pem_x509_certificates(self.config.bundle_file.read_bytes())

    def key_files(self) -> set[str]:
        return {path.stem for path in self.config.keys_dir.iterdir()}


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.store.close()


# -- intermediates ----------------------------------------------------------------


def test_an_intermediate_goes_through_its_life_by_itself(desk: Desk) -> None:
    first = desk.load(AT).issuer_key_id
    desk.issue(first, ends=AT + YEAR - YEAR / 5 + timedelta(hours=1))

    catch_up(desk.succession, at=AT + YEAR / 2)
    assert desk.states(AuthorityKind.INTERMEDIATE) == ["active", "prepared"]
    assert desk.load(AT + YEAR / 2).issuer_key_id == first

    handover = AT + YEAR - YEAR / 5
    catch_up(desk.succession, at=handover)
    assert desk.states(AuthorityKind.INTERMEDIATE) == ["retiring", "active"]
    second = desk.load(handover).issuer_key_id
    assert second != first

    catch_up(desk.succession, at=handover + timedelta(hours=1))
    assert desk.states(AuthorityKind.INTERMEDIATE)[0] == "retiring"
    assert first in desk.key_files()
    catch_up(desk.succession, at=handover + timedelta(hours=1) + MINUTE)
    assert desk.states(AuthorityKind.INTERMEDIATE)[0] == "retired"
    assert first not in desk.key_files()
    assert desk.bundle() == list(desk.authority.hierarchy.roots)


def test_an_authority_that_was_down_for_long_catches_up_in_one_look(desk: Desk) -> None:
    late = AT + YEAR + timedelta(days=30)
    with pytest.raises(AuthorityError, match="too soon to sign"):
        desk.load(late)
    catch_up(desk.succession, at=late)
    assert desk.load(late).issuer_not_after == late + YEAR


def test_every_step_counts_a_version_of_the_trust(desk: Desk) -> None:
    versions = [desk.store.trust.version()]
    key_id = desk.succession.prepare_intermediate(at=AT)
    versions.append(desk.store.trust.version())
    desk.succession.activate_intermediate(key_id, at=AT)
    versions.append(desk.store.trust.version())
    assert versions == [versions[0], versions[0] + 1, versions[0] + 2]


def test_of_two_replicas_that_prepare_at_once_one_does_it_and_the_other_leaves_nothing(desk: Desk) -> None:
    key_id = desk.succession.prepare_intermediate(at=AT)
    files = desk.key_files()
    with pytest.raises(Overtaken):
        desk.succession.prepare_intermediate(at=AT)
    assert desk.key_files() == files
    desk.succession.activate_intermediate(key_id, at=AT)
    with pytest.raises(Overtaken):
        desk.succession.activate_intermediate(key_id, at=AT)
    assert desk.states(AuthorityKind.INTERMEDIATE) == ["retiring", "active"]


def test_nothing_is_retired_before_its_time(desk: Desk) -> None:
    first = desk.load(AT).issuer_key_id
    desk.succession.activate_intermediate(desk.succession.prepare_intermediate(at=AT), at=AT)
    with pytest.raises(Overtaken):
        desk.succession.retire(first, at=AT + MINUTE / 2)
    desk.succession.retire(first, at=AT + MINUTE)


def test_the_key_of_a_retirement_that_was_cut_off_is_deleted_by_the_next_look(desk: Desk) -> None:
    first = desk.load(AT).issuer_key_id
    pem = (desk.config.keys_dir / f"{first}.pem").read_bytes()
    desk.succession.activate_intermediate(desk.succession.prepare_intermediate(at=AT), at=AT)
    desk.succession.retire(first, at=AT + MINUTE)
    (desk.config.keys_dir / f"{first}.pem").write_bytes(pem)
    catch_up(desk.succession, at=AT + MINUTE)
    assert first not in desk.key_files()


def test_without_the_root_key_the_server_prepares_nothing_and_says_so(desk: Desk) -> None:
    root = rotation.active_root(desk.succession.signing_keys())
    assert root is not None
    key_file = desk.config.keys_dir / f"{root.key_id}.pem"
    key_file.rename(desk.config.state_dir / "taken-away.pem")
    assert not desk.succession.root_key_at_hand()
    catch_up(desk.succession, at=AT + YEAR / 2)
    assert desk.states(AuthorityKind.INTERMEDIATE) == ["active"]
    with pytest.raises(AuthorityError, match=r"the root key is not here.*--root-key FILE.*--csr FILE"):
        desk.succession.prepare_intermediate(at=AT)


def test_a_root_key_that_is_brought_back_signs_and_stays_where_it_is(desk: Desk, tmp_path: Path) -> None:
    root = rotation.active_root(desk.succession.signing_keys())
    assert root is not None
    elsewhere = tmp_path / "medium.pem"
    (desk.config.keys_dir / f"{root.key_id}.pem").rename(elsewhere)
    access = RootAccess(keys=KeyFile(elsewhere), passphrase=PASSPHRASE)
    brought = Succession(config=desk.config, store=desk.store, passphrase=PASSPHRASE, root=access)
    brought.prepare_intermediate(at=AT)
    assert elsewhere.exists()
    assert root.key_id not in desk.key_files()


def test_a_key_of_another_root_is_not_taken_for_the_right_one(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = make_authority(tmp_path / "other", at=AT)
    with closing(Store.open(other.config.database)) as store:
        keys = Succession(config=other.config, store=store, passphrase=PASSPHRASE).signing_keys()
    key = rotation.active_root(keys)
    assert key is not None
    access = RootAccess(keys=KeyFile(other.config.keys_dir / f"{key.key_id}.pem"), passphrase=PASSPHRASE)
    brought = Succession(config=desk.config, store=desk.store, passphrase=PASSPHRASE, root=access)
    with pytest.raises(AuthorityError, match="not the key of the active root"):
        brought.prepare_intermediate(at=AT)


def test_a_root_that_ends_too_soon_makes_no_intermediate_that_would_cut_certificates_short(desk: Desk) -> None:
    at = AT + 10 * YEAR - timedelta(hours=5)
    with pytest.raises(AuthorityError, match="svid_ttl_s = 3600 under .* is too long for the intermediate"):
        desk.succession.prepare_intermediate(at=at)
    assert desk.states(AuthorityKind.INTERMEDIATE) == ["active"]


def test_a_ttl_that_does_not_fit_the_intermediate_is_refused_at_start(desk: Desk) -> None:
    config = dataclasses.replace(desk.config, svid_ttl_s=100 * 86_400)
    with pytest.raises(AuthorityError, match=r"svid_ttl_s = 8640000 .* set \d+ at most, a sixth of its life"):
        hierarchy.load(config, desk.store, passphrase=PASSPHRASE, at=AT)


# -- roots ------------------------------------------------------------------------


def test_a_root_is_published_before_anything_is_signed_under_it(desk: Desk) -> None:
    before = desk.load(AT)
    desk.roots.prepare(at=AT)
    loaded = desk.load(AT)
    assert desk.states(AuthorityKind.ROOT) == ["active", "prepared"]
    assert loaded.issuer_key_id == before.issuer_key_id
    assert loaded.roots[0] == before.roots[0]
    assert len(loaded.roots) == 2
    assert loaded.bundle_sequence == before.bundle_sequence + 1
    assert desk.bundle() == list(loaded.roots)


def test_an_activated_root_signs_while_the_old_one_is_trusted_until_its_last_certificate_has_ended(desk: Desk) -> None:
    old = desk.load(AT)
    desk.issue(old.issuer_key_id, ends=AT + timedelta(hours=1))
    desk.roots.prepare(at=AT)
    desk.roots.activate(at=AT + MINUTE)

    loaded = desk.load(AT + MINUTE)
    assert loaded.issuer.certificate.issuer == loaded.roots[1].subject
    assert desk.states(AuthorityKind.ROOT) == ["retiring", "active"]
    catch_up(desk.succession, at=AT + timedelta(hours=1))
    assert desk.states(AuthorityKind.ROOT) == ["retiring", "active"]
    catch_up(desk.succession, at=AT + timedelta(hours=1) + MINUTE)
    assert desk.states(AuthorityKind.ROOT) == ["retired", "active"]
    assert desk.bundle() == [loaded.roots[1]]
    assert len(desk.key_files()) == 2
    assert desk.load(AT + timedelta(hours=2)).bundle_sequence == old.bundle_sequence + 2


def test_a_prepared_intermediate_of_the_old_root_never_signs(desk: Desk) -> None:
    desk.succession.prepare_intermediate(at=AT)
    desk.roots.prepare(at=AT)
    desk.roots.activate(at=AT)
    assert desk.states(AuthorityKind.INTERMEDIATE) == ["retiring", "retired", "active"]


def test_only_one_root_is_prepared_at_a_time(desk: Desk) -> None:
    desk.roots.prepare(at=AT)
    with pytest.raises(Overtaken, match="prepared already"):
        desk.roots.prepare(at=AT)
    assert desk.states(AuthorityKind.ROOT) == ["active", "prepared"]


def test_a_root_is_activated_once(desk: Desk) -> None:
    with pytest.raises(Overtaken):
        desk.roots.activate(at=AT)
    desk.roots.prepare(at=AT)
    desk.roots.activate(at=AT)
    with pytest.raises(Overtaken):
        desk.roots.activate(at=AT)


def test_a_prepared_root_can_be_withdrawn_with_all_that_is_under_it(desk: Desk) -> None:
    files = desk.key_files()
    desk.roots.prepare(at=AT)
    desk.roots.withdraw(at=AT)
    assert desk.states(AuthorityKind.ROOT) == ["active", "retired"]
    assert desk.states(AuthorityKind.INTERMEDIATE) == ["active", "retired"]
    assert desk.bundle() == list(desk.authority.hierarchy.roots)
    assert desk.key_files() == files
    with pytest.raises(Overtaken):
        desk.roots.withdraw(at=AT)


def test_in_an_emergency_nothing_of_the_old_hierarchy_is_left(desk: Desk) -> None:
    desk.succession.prepare_intermediate(at=AT)
    desk.roots.prepare(at=AT)
    jwt = JwtSigner(store=desk.store, passphrase=PASSPHRASE, ttl=5 * MINUTE, lifetime=timedelta(days=7))
    jwt.tend(at=AT)
    old = {record.key_id for record in desk.succession.records()} | {key.key_id for key in desk.store.jwt_keys.read()}
    assert old == desk.key_files()
    key_id = desk.roots.replace_everything(at=AT)

    assert key_id not in old
    loaded = desk.load(AT)
    assert desk.bundle() == list(loaded.roots)
    assert len(loaded.roots) == 1
    assert not desk.key_files() & old
    assert desk.store.jwt_keys.published() == ()
    assert {record.state for record in desk.succession.records() if record.key_id in old} == {AuthorityState.RETIRED}


def test_a_successor_under_another_passphrase_never_takes_over(desk: Desk) -> None:
    before = desk.load(AT).issuer_key_id
    stranger = Succession(config=desk.config, store=desk.store, passphrase=b"another passphrase, by mistake")
    with pytest.raises(AuthorityError, match="nothing was changed"):
        stranger.prepare_intermediate(at=AT)
    with pytest.raises(AuthorityError, match="nothing was changed"):
        RootSuccession(stranger).prepare(at=AT)
    prepared = desk.succession.prepare_intermediate(at=AT)
    with pytest.raises(AuthorityError, match="nothing was changed"):
        stranger.activate_intermediate(prepared, at=AT)
    desk.roots.prepare(at=AT)
    with pytest.raises(AuthorityError, match="nothing was changed"):
        RootSuccession(stranger).activate(at=AT)
    assert desk.load(AT).issuer_key_id == before


def test_a_new_root_key_may_go_to_a_medium_of_its_own_under_its_own_passphrase(desk: Desk, tmp_path: Path) -> None:
    medium = tmp_path / "medium.pem"
    access = RootAccess(keys=KeyFile(medium), passphrase=b"another passphrase, for the root")
    offline = Succession(config=desk.config, store=desk.store, passphrase=PASSPHRASE, root=access)
    root_id = RootSuccession(offline).prepare(at=AT)
    RootSuccession(offline).activate(at=AT)
    assert root_id not in desk.key_files()
    assert medium.stat().st_mode & 0o777 == 0o600
    offline.prepare_intermediate(at=AT)
    wrong = RootAccess(keys=KeyFile(medium), passphrase=PASSPHRASE)
    mistaken = Succession(config=desk.config, store=desk.store, passphrase=PASSPHRASE, root=wrong)
    with pytest.raises(AuthorityError, match="wrong passphrase"):
        mistaken.prepare_intermediate(at=AT)
