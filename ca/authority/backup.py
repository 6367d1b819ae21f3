"""``ringfence ca backup``: everything that an authority is, of one moment, in one file, while it serves.

The database is copied first (one moment of it), then the keys: keys are written
before the certificates that need them and never change, so that the copy never
names one that is yet to come.
"""

import tempfile
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from ca.authority import archive
from ca.authority.config import AuthorityConfig
from ca.authority.durable import durable_file
from ca.authority.errors import AuthorityError
from ca.authority.hierarchy import published_roots
from ca.authority.keys import KeyStore
from ca.authority.records import AuthorityRecord, AuthorityState
from ca.authority.store import Store
from ca.authority.store.copying import copy_tables
from ca.authority.store.sqlite import SqliteDatabase


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """What was written; ``keys_elsewhere`` are keys in use that are not kept here, such as an offline root's."""

    path: Path
    size_bytes: int
    certificates: int
    keys: int
    keys_elsewhere: tuple[str, ...]


def write_backup(config: AuthorityConfig, path: Path, *, force: bool, at: datetime) -> Backup:
    """Write the backup to ``path``: mode 0600, on the disk when this returns; only ``force`` replaces a file.

    Raises:
        AuthorityError: there is no authority, its database is damaged, or the file is there or can not be written.
    """
    there_already = f"{path}: is there already and is not overwritten; name another file, or give --force"
    if path.exists() and not force:
        raise AuthorityError(there_already)
    try:
        with (
            closing(Store.open(config.database)) as store,
            tempfile.TemporaryDirectory(prefix=".ringfence-backup-", dir=path.parent) as directory,
        ):
            return _write(config, store, Path(directory), path, force=force, at=at)
    except FileExistsError as exc:
        raise AuthorityError(there_already) from exc
    except OSError as exc:
        raise AuthorityError(f"{path}: the backup can not be written: {exc.strerror or exc}") from exc


def _write(config: AuthorityConfig, store: Store, directory: Path, path: Path, *, force: bool, at: datetime) -> Backup:
    database = directory / archive.DATABASE
    _copy_database(store, database)
    with closing(Store.open(database)) as copy:
        records, certificates = copy.authorities(), copy.certificate_count()
    members = {archive.DATABASE: database, archive.BUNDLE: directory / archive.BUNDLE}
    _write_bundle(records, members[archive.BUNDLE])
    members |= _copy_keys(store.keys, directory)

    with durable_file(path, mode=0o600, exclusive=not force) as file:
        archive.write(file, members, trust_domain=config.trust_domain, at=at)
    in_use = [record.key_id for record in records if record.state is not AuthorityState.RETIRED]
    return Backup(
        path=path,
        size_bytes=path.stat().st_size,
        certificates=certificates,
        keys=len(members) - 2,
        keys_elsewhere=tuple(key_id for key_id in in_use if archive.key_member(key_id) not in members),
    )


def _copy_database(store: Store, path: Path) -> None:
    """Make a SQLite file of one moment of the database, whichever it is, and check that it is sound."""
    if isinstance(store.database, SqliteDatabase):
        store.database.backup(path)
    else:
        with closing(Store.open(path, create=True)) as copy:
            assert isinstance(copy.database, SqliteDatabase)
            copy_tables(store.database, copy.database, layout=copy.database)
    with closing(SqliteDatabase.open(path)) as copied:
        damage = copied.damage()
        if damage is not None:
            raise AuthorityError(
                f"{store.database}: is damaged: {damage}; nothing was written: keep your last backup, and restore it"
            )


def _write_bundle(records: list[AuthorityRecord], path: Path) -> None:
    roots = published_roots(records)
    path.write_bytes(b"".join(root.public_bytes(serialization.Encoding.PEM) for root in roots))


def _copy_keys(keys: KeyStore, directory: Path) -> dict[str, Path]:
    """Copy every key as it is, encrypted; one that is deleted meanwhile is a retired one, and not missed."""
    (directory / archive.KEYS).mkdir(mode=0o700)
    members = {}
    for key_id in keys.names():
        try:
            pem = keys.read(key_id)
        except AuthorityError:
            if keys.has(key_id):
                raise
            continue
        name = archive.key_member(key_id)
        (directory / name).write_bytes(pem)
        members[name] = directory / name
    return members
