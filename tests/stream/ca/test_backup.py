"""ringfence ca backup and restore: the round trip, and when a backup is not written."""

import json
import os
import shutil
import sqlite3
import tarfile
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest
import trio

from ca.authority.backup import write_backup
from ca.authority.errors import AuthorityError
from ca.authority.restoration import restore
from ca.authority.store import Store
from ca.csr import build_csr, new_key
from ca.errors import CaRefused
from ca.spiffe import SpiffeId
from tests.authority_builder import (
    PASSPHRASE,
    TRUST_DOMAIN,
    Authority,
    attested,
    make_authority,
    serving,
    sign,
    workload,
)
from tests.authority_load import load
from tests.authority_process import ringfence, running
from tests.postgres_server import PostgresServer

AT: Final = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = make_authority(tmp_path)
    made.pod("web-1", node="node-1", account="web")
    return made


@pytest.fixture
def archive(authority: Authority, tmp_path: Path) -> Path:
    path = tmp_path / "backup.tar"
    write_backup(authority.config, path, force=False, at=AT)
    return path


def restored(authority: Authority, path: Path) -> None:
    restore(authority.config, path, passphrase=PASSPHRASE, at=AT)


# -- the round trip ---------------------------------------------------------------


async def test_a_backup_under_load_restored_elsewhere_serves_the_old_agents_and_forgets_nothing(
    authority: Authority, tmp_path: Path
) -> None:
    path = tmp_path / "backup.tar"
    async with running(authority) as (server, port), trio.open_nursery() as nursery:
        nursery.start_soon(server.read_on)
        used, unused = authority.token("node-2"), authority.token("node-3")
        await authority.client(port).attest(used, "node-2", csr("node-2"))
        revoke = ringfence("ca", "revoke", "node", "node-2", "--config", authority.config_file)
        assert revoke.returncode == 0, revoke.stderr

        async with load(authority, [port]) as asked:
            await asked.more(50)
            before = len(asked.received)
            done = await trio.to_thread.run_sync(ringfence, "ca", "backup", path, "--config", authority.config_file)
            assert done.returncode == 0, done.stderr
            await asked.more(50)
            own = asked.own
        assert asked.failures == []
        server.process.kill()
        nursery.cancel_scope.cancel()
    assert path.stat().st_mode & 0o777 == 0o600

    new = authority.replica("-new")
    shutil.rmtree(authority.config.state_dir)
    done = ringfence("ca", "restore", path, "--config", new.config_file)
    assert done.returncode == 0, done.stderr
    assert "revocations made after" in done.stdout
    assert "1 join token is void" in done.stdout

    journal = {each.serial for each in new.journal()}
    assert set(asked.received[:before]) <= journal
    async with running(new) as (server, port):
        client = new.client(port)
        assert len((await sign(client, own, workload("web"))).certificates) == 1
        with pytest.raises(CaRefused, match="knows no such join token"):  # it may have been used since
            await client.attest(unused, "node-3", csr("node-3"))
        await client.attest(new.token("node-3"), "node-3", csr("node-3"))
        with pytest.raises(CaRefused, match="used already"):
            await client.attest(used, "node-2", csr("node-2"))
    listed = json.loads(ringfence("ca", "revoke", "list", "--json", "--config", new.config_file).stdout)
    assert [(each["kind"], each["value"]) for each in listed] == [("node", "node-2")]


def csr(node: str) -> bytes:
    return build_csr(new_key(), SpiffeId.node(TRUST_DOMAIN, node))


@pytest.mark.parametrize("path_of_migration", ["postgresql to sqlite", "sqlite to postgresql", "postgresql both"])
async def test_a_backup_goes_from_any_database_into_any_other(
    tmp_path: Path, postgres: PostgresServer, path_of_migration: str
) -> None:
    old_url = postgres.url(postgres.new_database()) if path_of_migration.startswith("postgresql") else None
    new_url = None if path_of_migration.endswith("sqlite") else postgres.url(postgres.new_database())
    old = make_authority(tmp_path, database_url=old_url)
    old.pod("web-1", node="node-1", account="web")
    async with serving(old) as port:
        own = await attested(old, old.client(port), "node-1")
        await sign(old.client(port), own, workload("web"))
        unused = old.token("node-2")
    path = tmp_path / "backup.tar"
    write_backup(old.config, path, force=False, at=AT)

    if old_url is not None:
        text = old.config_file.read_text()
        old.config_file.write_text(text.replace(f'database = "{old_url}"\n', ""))
    new = old.replica("-new", database_url=new_url)
    restored(new, path)
    assert [each for each in new.journal() if each.node] == [each for each in old.journal() if each.node]
    async with serving(new) as port:
        await sign(new.client(port), own, workload("web"))
        with pytest.raises(CaRefused, match="knows no such join token"):
            await new.client(port).attest(unused, "node-2", csr("node-2"))


def test_the_archive_holds_keys_only_encrypted_and_nothing_of_the_passphrase(
    authority: Authority, archive: Path
) -> None:
    with tarfile.open(archive) as tar:
        names = tar.getnames()
        keys = [tar.extractfile(name).read() for name in names if name.startswith("keys/")]  # type: ignore[union-attr]
    assert set(names) >= {"manifest.json", "authority.db", "bundle.pem"}
    assert len(keys) == len(list(authority.config.keys_dir.iterdir())) >= 2
    assert all(key.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----") for key in keys)
    assert PASSPHRASE not in archive.read_bytes()


def test_the_version_of_the_trust_goes_on_where_nobody_has_been(authority: Authority, archive: Path) -> None:
    with closing(Store.open(authority.config.database)) as store:
        before = store.trust.version()
    new = authority.replica("-new")
    restored(new, archive)
    with closing(Store.open(new.config.database)) as store:
        assert store.trust.version() > before + 1000


def test_an_offline_root_key_is_named_as_missing_and_does_not_hinder(authority: Authority, tmp_path: Path) -> None:
    (root,) = [each for each in authority.config.keys_dir.iterdir() if each.stem != authority.hierarchy.issuer_key_id]
    root.unlink()
    made = write_backup(authority.config, tmp_path / "backup.tar", force=False, at=AT)
    assert made.keys_elsewhere == (root.stem,)
    restored(authority.replica("-new"), tmp_path / "backup.tar")


def test_a_restore_that_was_cut_off_can_be_run_again(authority: Authority, archive: Path) -> None:
    new = authority.replica("-new")
    restored(new, archive)
    (new.config.state_dir / "authority.db").unlink()  # keys are moved first, the database last
    restored(new, archive)
    assert new.journal() == authority.journal()


def test_everything_that_was_restored_is_for_its_owner_only(authority: Authority, archive: Path) -> None:
    new = authority.replica("-new")
    restored(new, archive)
    state = new.config.state_dir
    assert state.stat().st_mode & 0o777 == 0o700
    assert sorted(each.name for each in state.iterdir()) == ["authority.db", "bundle.pem", "keys"]
    private = [state / "authority.db", *(state / "keys").iterdir()]
    assert {each.stat().st_mode & 0o777 for each in private} == {0o600}


# -- what backup refuses ----------------------------------------------------------


def test_a_backup_never_replaces_a_file_unless_forced(authority: Authority, archive: Path) -> None:
    before = archive.read_bytes()
    with pytest.raises(AuthorityError, match="--force"):
        write_backup(authority.config, archive, force=False, at=AT)
    assert archive.read_bytes() == before
    write_backup(authority.config, archive, force=True, at=AT + timedelta(days=1))
    assert archive.read_bytes() != before
    assert [each.name for each in archive.parent.glob(".*")] == []


def test_a_backup_where_nothing_can_be_written_says_so(authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(AuthorityError, match="can not be written: No such file"):
        write_backup(authority.config, tmp_path / "missing" / "backup.tar", force=False, at=AT)


def test_there_is_nothing_to_back_up_before_init(authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(AuthorityError, match="ringfence ca init"):
        write_backup(authority.replica("-new").config, tmp_path / "backup.tar", force=False, at=AT)


def test_a_damaged_database_is_found_before_it_replaces_the_last_good_backup(
    authority: Authority, archive: Path
) -> None:
    database = authority.config.state_dir / "authority.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        (page,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'certificates_node'").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    with database.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(os.urandom(size))
    before = archive.read_bytes()
    with pytest.raises(AuthorityError, match="is damaged"):
        write_backup(authority.config, archive, force=True, at=AT)
    assert archive.read_bytes() == before
