"""``ringfence ca restore``: an authority again, from a backup, where there is none.

Everything is unpacked beside its place, judged, and only then moved there.  The
database comes last: an authority that was cut off half-way has none, and the
same restore can be run again.

The journal and the revocations are those of the backup.  What came after is
lost with the machine that was lost: the caller is told of when the backup is,
because certificates issued, and revocations made, since then are not in it.
Which join tokens were used since then nobody knows: none of them counts.
"""

import os
import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from ca.authority import archive, external
from ca.authority.config import AuthorityConfig
from ca.authority.durable import sync_directory
from ca.authority.errors import AuthorityError
from ca.authority.founding import make_private
from ca.authority.hierarchy import published_roots, write_bundle
from ca.authority.keys import KeyFiles, KeyStore, key_path, read_key
from ca.authority.profile import ProfileError
from ca.authority.records import AuthorityKind, AuthorityRecord, AuthorityState
from ca.authority.store import Store
from ca.authority.store.copying import copy_tables
from ca.authority.store.database import Transaction
from ca.authority.store.sqlite import SqliteDatabase
from ca.authority.store.tokens import void_all
from ca.authority.store.trust import leap
from ca.svid import SvidError

_ENCRYPTED: Final = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What is there now; ``made_at`` is when the backup was made."""

    made_at: datetime
    certificates: int
    keys: int
    voided_tokens: int


def restore(config: AuthorityConfig, path: Path, *, passphrase: bytes, at: datetime) -> Restored:
    """Put the authority of the backup at ``path`` where ``config`` says.

    Raises:
        AuthorityError: there is an authority already, or the backup is not whole, of another trust domain, of a newer
            version, or encrypted under another passphrase; nothing was changed then.
    """
    if isinstance(config.database, Path) and config.database.exists():
        raise _already(config, f"stop its server and move {config.state_dir} away first")
    make_private(config.state_dir)
    with tempfile.TemporaryDirectory(prefix=".restore-", dir=config.state_dir) as name:
        staged = Path(name)
        manifest = archive.extract(path, staged)
        if manifest.trust_domain != config.trust_domain:
            raise AuthorityError(
                f"{path}: is of trust domain {manifest.trust_domain!r}, and [ca] trust_domain is "
                f"{config.trust_domain!r}; set it to restore this backup"
            )
        (staged / archive.KEYS).mkdir(mode=0o700, exist_ok=True)
        with closing(_judged(config, path, staged, passphrase=passphrase)) as store:
            pending = len(store.pending_tokens(at=at))
            with store.database.transaction() as transaction:
                leap(transaction)
                void_all(transaction)
            roots = published_roots(store.authorities())
            restored = Restored(
                made_at=manifest.made_at,
                certificates=store.certificate_count(),
                keys=len(manifest.keys),
                voided_tokens=pending,
            )
            if not isinstance(config.database, Path):
                _copy_into(config, store, manifest, staged)
        write_bundle(config, roots)
        if isinstance(config.database, Path):
            _move(config.database, config.keys_dir, manifest, staged)
    return restored


def _judged(config: AuthorityConfig, path: Path, staged: Path, *, passphrase: bytes) -> Store:
    """Open the unpacked authority as its server would, having looked at all of it."""
    file = staged / archive.DATABASE
    with closing(SqliteDatabase.open(file)) as database:
        damage = database.damage()
    if damage is not None:
        raise AuthorityError(f"{path}: its database is damaged: {damage}; use another backup")
    store = Store.open(file)
    try:
        records = store.authorities()
        _require_roots(config, path, records)
        _require_keys(path, records, KeyFiles(staged / archive.KEYS), passphrase=passphrase)
    except BaseException:
        store.close()
        raise
    return store


def _require_roots(config: AuthorityConfig, path: Path, records: list[AuthorityRecord]) -> None:
    roots = published_roots(records)
    if not roots:
        raise AuthorityError(f"{path}: holds no authority, only a database; use another backup")
    try:
        for root in roots:
            external.require_root(root, trust_domain=config.trust_domain)
    except (ProfileError, SvidError) as exc:
        raise AuthorityError(f"{path}: its root does not fit {config.trust_domain!r}: {exc}") from exc


def _require_keys(path: Path, records: list[AuthorityRecord], keys: KeyStore, *, passphrase: bytes) -> None:
    """Every key is encrypted, all but the roots' under our passphrase, and the one that signs is there."""
    roots = {record.key_id for record in records if record.kind is AuthorityKind.ROOT}
    public = {}
    for key_id in keys.names():
        if key_id not in roots:  # a root's key may have a passphrase of its own
            try:
                public[key_id] = read_key(keys, key_id, passphrase).public_key()
            except AuthorityError as exc:
                raise AuthorityError(
                    f"{path}: wrong passphrase for its key {key_id}: give the one of the time when the backup was "
                    "made (--passphrase-file FILE)"
                ) from exc
        elif not keys.read(key_id).startswith(_ENCRYPTED):
            raise AuthorityError(f"{path}: the key {key_id} in it is not encrypted; it must not be used")
    for record in records:
        signs = record.state is AuthorityState.ACTIVE and record.kind is AuthorityKind.INTERMEDIATE
        if signs and public.get(record.key_id) != record.certificate.public_key():
            raise AuthorityError(f"{path}: the key of the active intermediate {record.key_id} is not in it")


def _move(database: Path, keys_dir: Path, manifest: archive.Manifest, staged: Path) -> None:
    """Put keys and then the database in their places, on the disk."""
    make_private(keys_dir)
    sources: Mapping[Path, Path] = {
        key_path(keys_dir, key_id): staged / archive.key_member(key_id) for key_id in manifest.keys
    }
    for target, source in sources.items():
        if target.exists() and target.read_bytes() != source.read_bytes():
            raise AuthorityError(f"{target}: is there already, and is another key; move it away first")
    for target, source in sources.items():
        os.replace(source, target)
    sync_directory(keys_dir)
    try:
        os.link(staged / archive.DATABASE, database)  # unlike a rename, never over one that came meanwhile
    except FileExistsError as exc:
        raise AuthorityError(f"{database}: somebody made an authority here meanwhile; it was not overwritten") from exc
    sync_directory(database.parent)


def _copy_into(config: AuthorityConfig, source: Store, manifest: archive.Manifest, staged: Path) -> None:
    """Copy everything into the empty database that replicas share, in one transaction."""
    layout = source.database
    assert isinstance(layout, SqliteDatabase)

    def begin(transaction: Transaction) -> None:
        for table in ("authorities", "certificates"):
            if transaction.query(f"SELECT count(*) FROM {table}")[0][0]:  # noqa: S608 - constants
                raise _already(config, "give [ca] database another database, or stop its replicas and empty this one")
        transaction.execute("DELETE FROM signing_keys")
        transaction.executemany(
            "INSERT INTO signing_keys (key_id, encrypted_pem) VALUES (?, ?)",
            [(key_id, (staged / archive.key_member(key_id)).read_bytes()) for key_id in manifest.keys],
        )

    with closing(Store.open(config.database, create=True)) as target:
        copy_tables(source.database, target.database, layout=layout, before=begin)


def _already(config: AuthorityConfig, remedy: str) -> AuthorityError:
    return AuthorityError(
        f"{config.database}: there is an authority here already and it is never overwritten; {remedy}"
    )
