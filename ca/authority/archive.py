"""The format of a backup: one tar file of everything that an authority is.

    manifest.json      what this is, of when, and the SHA-256 of every other member
    authority.db       the database, always as SQLite, whichever it came from
    keys/<key id>.pem  signing keys, encrypted as they were
    bundle.pem         the roots, public

An archive is judged before anything of it is used: only these names, each
once, only regular files, with the hashes that the manifest says.  That proves
that the file is whole; it is as secret and as authentic as the place where the
operator keeps it.
"""

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, BinaryIO, Final

from ca.authority.errors import AuthorityError

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
DATABASE: Final = "authority.db"
BUNDLE: Final = "bundle.pem"
KEYS: Final = "keys"
_KEY_NAME: Final = re.compile(rf"{KEYS}/[0-9a-f]{{1,128}}\.pem")
_MAX_MEMBERS: Final = 10_000
_MAX_SMALL_BYTES: Final = 4 * 1024 * 1024  # of everything but the database
_CHUNK_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What the archive says of itself; ``files`` has the SHA-256 of each other member in hex."""

    trust_domain: str
    made_at: datetime
    files: Mapping[str, str]

    def to_json(self) -> bytes:
        """As it is written."""
        fields = {"format": FORMAT, "trust_domain": self.trust_domain, "made_at": self.made_at.isoformat()}
        return json.dumps({**fields, "files": dict(self.files)}, indent=2).encode()

    @classmethod
    def from_json(cls, text: bytes) -> "Manifest":
        """Read what ``to_json`` made.

        Raises:
            ValueError: it is something else, or of a newer version.
        """
        fields = json.loads(text)
        if not isinstance(fields, dict) or "format" not in fields:
            raise ValueError(f"{MANIFEST} is not a backup's")
        if fields["format"] != FORMAT:
            raise ValueError(f"it has format {fields['format']!r}, and this program knows {FORMAT} only")
        files, domain, made_at = (fields.get(key) for key in ("files", "trust_domain", "made_at"))
        if not isinstance(files, dict) or not isinstance(domain, str) or not isinstance(made_at, str):
            raise ValueError(f"{MANIFEST} is not a backup's")
        return cls(trust_domain=domain, made_at=datetime.fromisoformat(made_at).astimezone(UTC), files=files)

    @property
    def keys(self) -> list[str]:
        """The key identifiers of the signing keys in it."""
        return [Path(name).stem for name in self.files if _KEY_NAME.fullmatch(name)]


def key_member(key_id: str) -> str:
    """The name of a signing key in the archive."""
    return f"{KEYS}/{key_id}.pem"


def write(target: BinaryIO, members: Mapping[str, Path], *, trust_domain: str, at: datetime) -> None:
    """Write an archive of ``members``, by their names in it, to ``target``."""
    files = {name: _digest(path) for name, path in members.items()}
    text = Manifest(trust_domain=trust_domain, made_at=at, files=files).to_json()
    with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(_entry(MANIFEST, len(text), at), io.BytesIO(text))
        for name, path in members.items():
            with path.open("rb") as file:
                tar.addfile(_entry(name, path.stat().st_size, at), file)


def extract(path: Path, directory: Path) -> Manifest:
    """Check the archive at ``path`` and put its members into the empty ``directory``.

    Raises:
        AuthorityError: it is no backup, is damaged, or holds what does not belong into one.
    """
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r|") as tar:
            return _extracted(tar, directory)
    except OSError as exc:
        raise AuthorityError(f"{path}: the backup can not be read: {exc.strerror or exc}") from exc
    except (ValueError, tarfile.TarError, EOFError) as exc:
        raise AuthorityError(f"{path}: this is not a whole backup of an authority: {exc}; use another one") from exc


def _extracted(tar: tarfile.TarFile, directory: Path) -> Manifest:
    manifest: Manifest | None = None
    missing: set[str] = set()
    for position, member in enumerate(tar):
        content = tar.extractfile(member) if member.isreg() else None
        if content is None or position > _MAX_MEMBERS:
            raise ValueError("it holds something else than files, or too many of them")
        if member.name != DATABASE and member.size > _MAX_SMALL_BYTES:
            raise ValueError(f"{member.name[:100]!r} is too big")
        if manifest is None:
            if member.name != MANIFEST:
                raise ValueError(f"it does not begin with {MANIFEST}")
            manifest = Manifest.from_json(content.read())
            missing = set(manifest.files)
            continue
        if member.name not in missing or not _is_ours(member.name):
            raise ValueError(f"{member.name[:100]!r} does not belong into it")
        missing.remove(member.name)
        if _copy(content, directory / member.name) != manifest.files[member.name]:
            raise ValueError(f"{member.name} is not what {MANIFEST} says (SHA-256)")
    if manifest is None or missing or not {DATABASE, BUNDLE} <= manifest.files.keys():
        raise ValueError(f"it has no {', '.join(sorted(missing)) or DATABASE}")
    return manifest


def _is_ours(name: str) -> bool:
    return name in (DATABASE, BUNDLE) or _KEY_NAME.fullmatch(name) is not None


def _copy(content: IO[bytes], path: Path) -> str:
    """Write a member as a new file with mode 0600; returns its SHA-256."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.touch(mode=0o600, exist_ok=False)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        while chunk := content.read(_CHUNK_BYTES):
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _entry(name: str, size: int, at: datetime) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = size, 0o600, int(at.timestamp())
    return entry
