"""Making and loading the hierarchy: never over another, never something that does not fit."""

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ca.authority import founding, hierarchy
from ca.authority.errors import AuthorityError
from ca.authority.keys import key_path
from ca.authority.store import Store
from tests.authority_builder import PASSPHRASE, Authority, make_authority

AT = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def load(authority: Authority, *, at: datetime = AT, passphrase: bytes = PASSPHRASE) -> hierarchy.Hierarchy:
    store = Store.open(authority.config.database)
    try:
        return hierarchy.load(authority.config, store, passphrase=passphrase, at=at)
    finally:
        store.close()


def test_what_was_made_is_loaded(tmp_path: Path) -> None:
    authority = make_authority(tmp_path, at=AT)
    loaded = load(authority)
    assert loaded.roots == authority.hierarchy.roots
    assert loaded.issuer.certificate == authority.hierarchy.issuer.certificate
    assert loaded.bundle_sequence == 1


def test_an_authority_is_never_overwritten(tmp_path: Path) -> None:
    authority = make_authority(tmp_path, at=AT)
    before = authority.config.bundle_file.read_bytes()
    with pytest.raises(AuthorityError, match="never overwritten"):
        founding.create(authority.config, passphrase=PASSPHRASE, at=AT)
    assert authority.config.bundle_file.read_bytes() == before
    assert load(authority).roots == authority.hierarchy.roots


@pytest.mark.parametrize("trust_domain", ["10.0.0.1", ".example", "example.", "a..b"])
def test_a_trust_domain_that_no_name_constraint_can_name_makes_nothing(tmp_path: Path, trust_domain: str) -> None:
    with pytest.raises(AuthorityError, match=r"RFC 5280 4\.2\.1\.10"):
        make_authority(tmp_path, at=AT, trust_domain=trust_domain)
    assert not (tmp_path / "state").exists()


def test_the_state_is_for_its_owner_only_and_holds_no_key_in_clear(tmp_path: Path) -> None:
    config = make_authority(tmp_path, at=AT).config
    assert config.state_dir.stat().st_mode & 0o777 == 0o700
    assert config.keys_dir.stat().st_mode & 0o777 == 0o700
    keys = list(config.keys_dir.iterdir())
    assert len(keys) == 2
    assert all(b"BEGIN ENCRYPTED PRIVATE KEY" in key.read_bytes() for key in keys)
    for path in config.state_dir.rglob("*"):
        assert path.is_dir() or b"BEGIN PRIVATE KEY" not in path.read_bytes()


def test_a_directory_that_others_use_is_not_taken_over(tmp_path: Path) -> None:
    authority = make_authority(tmp_path, at=AT)
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    (shared / "somebody's").touch()
    with pytest.raises(AuthorityError, match="a directory of its own"):
        founding.create(dataclasses.replace(authority.config, state_dir=shared), passphrase=PASSPHRASE, at=AT)
    assert shared.stat().st_mode & 0o777 == 0o755


def test_an_init_that_was_cut_off_can_be_run_again(tmp_path: Path) -> None:
    made = make_authority(tmp_path, at=AT)
    config = dataclasses.replace(made.config, state_dir=tmp_path / "cut", database=tmp_path / "cut" / "authority.db")
    config.keys_dir.mkdir(parents=True, mode=0o700)
    config.state_dir.chmod(0o700)
    key_path(config.keys_dir, "orphan").write_bytes(b"")
    Store.open(config.database, create=True).close()

    founding.create(config, passphrase=PASSPHRASE, at=AT)

    assert config.bundle_file.exists()


def test_another_trust_domain_does_not_load(tmp_path: Path) -> None:
    authority = make_authority(tmp_path, at=AT)
    other = dataclasses.replace(authority, config=dataclasses.replace(authority.config, trust_domain="other.example"))
    with pytest.raises(AuthorityError, match=r"other\.example"):
        load(other)


def test_a_wrong_passphrase_is_named(tmp_path: Path) -> None:
    with pytest.raises(AuthorityError, match="wrong passphrase"):
        load(make_authority(tmp_path, at=AT), passphrase=b"some other passphrase")


@pytest.mark.parametrize(("at", "says"), [(timedelta(days=365), "too soon"), (timedelta(minutes=-5), "set the clock")])
def test_an_intermediate_out_of_its_time_does_not_sign(tmp_path: Path, at: timedelta, says: str) -> None:
    with pytest.raises(AuthorityError, match=says):
        load(make_authority(tmp_path, at=AT), at=AT + at)
