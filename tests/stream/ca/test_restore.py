"""ringfence ca restore: what it refuses, and that nothing has changed then."""

import hashlib
import io
import json
import sqlite3
import tarfile
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

from ca.authority.backup import write_backup
from ca.authority.config import AuthorityConfig
from ca.authority.errors import AuthorityError
from ca.authority.restoration import restore
from tests.authority_builder import PASSPHRASE, TRUST_DOMAIN, Authority, make_authority
from tests.postgres_server import PostgresServer

AT: Final = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return make_authority(tmp_path)


@pytest.fixture
def archive(authority: Authority, tmp_path: Path) -> Path:
    path = tmp_path / "backup.tar"
    write_backup(authority.config, path, force=False, at=AT)
    return path


def restored(authority: Authority, path: Path) -> None:
    restore(authority.config, path, passphrase=PASSPHRASE, at=AT)


def test_an_authority_is_never_overwritten(authority: Authority, archive: Path) -> None:
    before = authority.journal()
    with pytest.raises(AuthorityError, match="never overwritten; stop its server"):
        restored(authority, archive)
    assert authority.journal() == before


def test_an_authority_in_postgresql_is_never_overwritten(
    authority: Authority, archive: Path, postgres: PostgresServer
) -> None:
    new = authority.replica("-new", database_url=postgres.url(postgres.new_database()))
    restored(new, archive)
    before = new.journal()
    with pytest.raises(AuthorityError, match="never overwritten; give \\[ca\\] database another"):
        restored(new, archive)
    assert new.journal() == before


def test_another_passphrase_is_refused(authority: Authority, archive: Path) -> None:
    new = authority.replica("-new")
    with pytest.raises(AuthorityError, match=r"backup\.tar: wrong passphrase for its key \w+: give the one"):
        restore(new.config, archive, passphrase=b"another passphrase", at=AT)
    assert_nothing_was_changed(new)


def test_another_trust_domain_is_refused(authority: Authority, archive: Path) -> None:
    new = authority.replica("-new")
    new.config_file.write_text(new.config_file.read_text().replace(TRUST_DOMAIN, "other.example"))
    with pytest.raises(AuthorityError, match=r"is of trust domain 'cluster.local'.*'other.example'"):
        restore(AuthorityConfig.load(new.config_file), archive, passphrase=PASSPHRASE, at=AT)
    assert_nothing_was_changed(new)


def test_a_key_that_is_there_already_is_never_replaced(authority: Authority, archive: Path) -> None:
    new = authority.replica("-new")
    new.config.keys_dir.mkdir(parents=True, mode=0o700)
    new.config.state_dir.chmod(0o700)
    other = new.config.keys_dir / f"{authority.hierarchy.issuer_key_id}.pem"
    other.write_bytes(b"another")
    with pytest.raises(AuthorityError, match="is another key"):
        restored(new, archive)
    assert other.read_bytes() == b"another"
    assert not new.config.state_dir.joinpath("authority.db").exists()


def assert_nothing_was_changed(new: Authority) -> None:
    assert not new.config.state_dir.exists() or list(new.config.state_dir.iterdir()) == []


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {each.name: tar.extractfile(each).read() for each in tar}  # type: ignore[union-attr]


def written(path: Path, content: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in content.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def with_manifest(path: Path, change: Callable[[dict[str, object]], None]) -> None:
    content = members(path)
    fields = json.loads(content["manifest.json"])
    change(fields)
    written(path, {**content, "manifest.json": json.dumps(fields).encode()})


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20_000])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(b"garbage" * 1000)


def one_bit_of_the_database(path: Path) -> None:
    content = members(path)
    data = bytearray(content["authority.db"])
    data[5000] ^= 1
    written(path, {**content, "authority.db": bytes(data)})


def without_the_manifest(path: Path) -> None:
    content = members(path)
    del content["manifest.json"]
    written(path, content)


def without_the_database(path: Path) -> None:
    content = members(path)
    del content["authority.db"]
    written(path, content)


def with_a_path_that_leads_out(path: Path) -> None:
    content = members(path)
    fields = json.loads(content["manifest.json"])
    fields["files"]["../escaped"] = "00"
    written(path, {**content, "manifest.json": json.dumps(fields).encode(), "../escaped": b"x"})


def with_a_link(path: Path) -> None:
    with tarfile.open(path, "a") as tar:
        entry = tarfile.TarInfo("keys/ab.pem")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/shadow"
        tar.addfile(entry)


def with_a_member_twice(path: Path) -> None:
    data = members(path)["bundle.pem"]
    with tarfile.open(path, "a") as tar:
        entry = tarfile.TarInfo("bundle.pem")
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))


def of_a_later_format(path: Path) -> None:
    with_manifest(path, lambda fields: fields.update(format=2))


def with_a_manifest_of_something_else(path: Path) -> None:
    written(path, {**members(path), "manifest.json": b"[]"})


@pytest.mark.parametrize(
    "spoil",
    [
        truncated,
        emptied,
        garbage,
        one_bit_of_the_database,
        without_the_manifest,
        without_the_database,
        with_a_path_that_leads_out,
        with_a_link,
        with_a_member_twice,
        of_a_later_format,
        with_a_manifest_of_something_else,
    ],
)
def test_what_is_not_a_whole_backup_is_refused_and_changes_nothing(
    authority: Authority, archive: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(archive)
    new = authority.replica("-new")
    with pytest.raises(AuthorityError, match=r"backup\.tar: this is not a whole backup"):
        restored(new, archive)
    assert_nothing_was_changed(new)
    assert not (archive.parent / "escaped").exists()


def resealed(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """Change members and make the manifest fit them: what a careful forger or a buggy tool would do."""
    content = members(path)
    fields = json.loads(content.pop("manifest.json"))
    change(content)
    fields["files"] = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    written(path, {"manifest.json": json.dumps(fields).encode(), **content})


def test_a_backup_without_the_key_that_signs_is_refused(authority: Authority, archive: Path) -> None:
    def remove(content: dict[str, bytes]) -> None:
        del content[f"keys/{authority.hierarchy.issuer_key_id}.pem"]

    resealed(archive, remove)
    new = authority.replica("-new")
    with pytest.raises(AuthorityError, match="key of the active intermediate"):
        restored(new, archive)
    assert_nothing_was_changed(new)


def test_a_backup_with_another_key_in_its_place_is_refused(authority: Authority, archive: Path) -> None:
    signing = f"keys/{authority.hierarchy.issuer_key_id}.pem"

    def swap(content: dict[str, bytes]) -> None:
        (other,) = [name for name in content if name.startswith("keys/") and name != signing]
        content[signing] = content[other]

    resealed(archive, swap)
    with pytest.raises(AuthorityError, match="key of the active intermediate"):
        restored(authority.replica("-new"), archive)


def test_a_backup_whose_database_is_of_a_newer_version_is_refused(
    authority: Authority, archive: Path, tmp_path: Path
) -> None:
    def age(content: dict[str, bytes]) -> None:
        path = tmp_path / "newer.db"
        path.write_bytes(content["authority.db"])
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("INSERT INTO schema_version VALUES (99)")
        content["authority.db"] = path.read_bytes()

    resealed(archive, age)
    with pytest.raises(AuthorityError, match="newer"):
        restored(authority.replica("-new"), archive)
