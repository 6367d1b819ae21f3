"""Private keys of the authority: stored only encrypted.

A stored key is PKCS8 (RFC 5958) encrypted under a passphrase that comes from a
file that only its owner can read, or is typed at a terminal; it never comes
from argv or the environment, which other users of the machine can see.
"""

import getpass
import os
import stat
import sys
from pathlib import Path
from typing import Final, Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ca.authority.durable import durable_file
from ca.authority.errors import AuthorityError
from ca.authority.memory import keep_in_memory
from ca.csr import PrivateKey, key_to_pem

_MIN_PASSPHRASE_BYTES: Final = 16  # PKCS8 stretches it with 2048 rounds only: it must be random, not remembered
_MAX_PASSPHRASE_BYTES: Final = 1024  # OpenSSL's own limit for PEM passphrases
_GROUP_AND_WORLD: Final = 0o077


def ask_passphrase(path: Path | None, *, what: str = "the passphrase of the signing keys", new: bool = False) -> bytes:
    """Read the passphrase from its file, or ask for it, if there is none and somebody sits at a terminal.

    A ``new`` one is asked for twice.  From now on this process leaves no core dump: what the passphrase opens is in it.

    Raises:
        AuthorityError: as ``read_passphrase``; or what was typed is not usable, or not the same twice.
    """
    keep_in_memory()
    if path is not None or not sys.stdin.isatty():
        return read_passphrase(path)
    passphrase = _typed(f"{what}: ")
    if new and _typed(f"{what}, again: ") != passphrase:
        raise AuthorityError("the two passphrases are not the same; nothing was made")
    if not _MIN_PASSPHRASE_BYTES <= len(passphrase) <= _MAX_PASSPHRASE_BYTES:
        raise AuthorityError(f"a passphrase has {_MIN_PASSPHRASE_BYTES} to {_MAX_PASSPHRASE_BYTES} bytes")
    return passphrase


def _typed(prompt: str) -> bytes:
    try:
        return getpass.getpass(prompt).encode()
    except EOFError:
        raise AuthorityError("no passphrase was typed; nothing was done") from None
    except UnicodeError:  # its text would quote what was typed
        raise AuthorityError("what was typed is not text in this terminal's encoding; nothing was done") from None


def read_passphrase(path: Path | None) -> bytes:
    """Read the passphrase from a file that only its owner can read.

    One newline at the end does not count, so that ``echo secret > file`` works.

    Raises:
        AuthorityError: no file, readable by others, or not usable as a passphrase.
    """
    if path is None:
        raise AuthorityError(
            "no passphrase: keys on disk are always encrypted; set passphrase_file under [ca] in ca.toml, "
            "give --passphrase-file, or run this at a terminal, which asks"
        )
    try:
        # O_NONBLOCK: opening a FIFO must not wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        remedy = "run this as its owner, or as root"
        if isinstance(exc, FileNotFoundError):  # the command would overwrite one that is there
            remedy = f"make it: (umask 077; openssl rand -hex 32 > {path})"
        raise AuthorityError(f"{path}: the passphrase file can not be read: {exc.strerror}; {remedy}") from exc
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise AuthorityError(f"{path}: the passphrase file must be a regular file")
        if stat.S_IMODE(mode) & _GROUP_AND_WORLD:
            raise AuthorityError(
                f"{path}: the passphrase file is open to other users (mode {stat.S_IMODE(mode):04o}); "
                f"run: chmod 0600 {path}"
            )
        passphrase = os.read(descriptor, _MAX_PASSPHRASE_BYTES + 2).removesuffix(b"\n").removesuffix(b"\r")
    finally:
        os.close(descriptor)
    if not _MIN_PASSPHRASE_BYTES <= len(passphrase) <= _MAX_PASSPHRASE_BYTES:
        raise AuthorityError(
            f"{path}: the passphrase must have {_MIN_PASSPHRASE_BYTES} to {_MAX_PASSPHRASE_BYTES} bytes, "
            f"on one line; make one with: openssl rand -hex 32"
        )
    return passphrase


class KeyStore(Protocol):
    """Where encrypted keys are kept: files beside SQLite, or a table of the database that replicas share."""

    def where(self, key_id: str) -> str:
        """Name the place of one key, for errors."""

    def add(self, key_id: str, encrypted_pem: bytes) -> None:
        """Keep a key durably; never over one that is there (FileExistsError)."""

    def read(self, key_id: str) -> bytes:
        """Return what ``add`` was given.

        Raises:
            AuthorityError: it is not there, or can not be read.
        """

    def has(self, key_id: str) -> bool:
        """Whether the key is there: a root key may have been moved away."""

    def remove(self, key_id: str) -> None:
        """Forget a key, if it is there."""

    def names(self) -> list[str]:
        """The identifiers of all keys that are there, sorted: what a backup holds."""


class KeyFiles:
    """Keys as files ``<key id>.pem`` with mode 0600 in one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def where(self, key_id: str) -> str:
        """The path of the file."""
        return str(key_path(self._directory, key_id))

    def add(self, key_id: str, encrypted_pem: bytes) -> None:
        """Write the file whole, or not at all."""
        path = key_path(self._directory, key_id)
        try:
            write_durably(path, encrypted_pem, mode=0o600, exclusive=True)
        except FileExistsError:
            raise
        except OSError as exc:
            raise AuthorityError(f"{path}: the key can not be written: {exc.strerror}; nothing was changed") from exc

    def read(self, key_id: str) -> bytes:
        """Read the file."""
        path = key_path(self._directory, key_id)
        try:
            return path.read_bytes()
        except OSError as exc:
            raise AuthorityError(f"{path}: the key can not be read: {exc.strerror}; restore it from a backup") from exc

    def has(self, key_id: str) -> bool:
        """Whether the file is there."""
        return key_path(self._directory, key_id).exists()

    def remove(self, key_id: str) -> None:
        """Delete the file.  What it held is encrypted, so that its blocks need not be overwritten."""
        key_path(self._directory, key_id).unlink(missing_ok=True)

    def names(self) -> list[str]:
        """The names of the files."""
        return sorted(path.stem for path in self._directory.glob("*.pem") if not path.name.startswith("."))


class KeyFile:
    """One key in one file, wherever the operator keeps it: a root key on a medium that is taken away."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def where(self, key_id: str) -> str:
        """The path, whichever key is meant."""
        return str(self._path)

    def add(self, key_id: str, encrypted_pem: bytes) -> None:
        """Write the file whole, or not at all.

        Raises:
            AuthorityError: there is a file already.
        """
        try:
            write_durably(self._path, encrypted_pem, mode=0o600, exclusive=True)
        except FileExistsError as exc:
            raise AuthorityError(
                f"{self._path}: is there already, and no key is ever written over another; name a new file"
            ) from exc

    def read(self, key_id: str) -> bytes:
        """Read the file."""
        try:
            return self._path.read_bytes()
        except OSError as exc:
            raise AuthorityError(f"{self._path}: the root key can not be read: {exc.strerror}") from exc

    def has(self, key_id: str) -> bool:
        """Whether the file is there."""
        return self._path.exists()

    def remove(self, key_id: str) -> None:
        """Leave it: what the operator put somewhere, the operator takes away."""

    def names(self) -> list[str]:
        """None: its place is the operator's business, and so is its backup."""
        return []


def write_key(keys: KeyStore, key_id: str, key: PrivateKey, passphrase: bytes) -> None:
    """Keep ``key``, encrypted; never over one that is there."""
    keys.add(key_id, key_to_pem(key, passphrase))


def read_key(keys: KeyStore, key_id: str, passphrase: bytes) -> PrivateKey:
    """Decrypt the key with that subject key identifier.

    Raises:
        AuthorityError: missing, not encrypted, wrong passphrase or not ours.
    """
    pem, path = keys.read(key_id), keys.where(key_id)
    try:
        key = serialization.load_pem_private_key(pem, passphrase)
    except TypeError as exc:
        raise AuthorityError(f"{path}: the key is not encrypted; it must not be used: replace it") from exc
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise AuthorityError(f"{path}: wrong passphrase, or the file is damaged") from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise AuthorityError(f"{path}: holds a {type(key).__name__}, not the EC key that was written there")
    return key


def key_path(directory: Path, key_id: str) -> Path:
    """Where the key with subject key identifier ``key_id`` (hex) is kept."""
    return directory / f"{key_id}.pem"


def write_durably(path: Path, content: bytes, *, mode: int, exclusive: bool = False) -> None:
    """Write a whole file so that a crash leaves the old one or the new one.

    Raises:
        FileExistsError: ``exclusive`` and the file is already there.
    """
    with durable_file(path, mode=mode, exclusive=exclusive) as file:
        file.write(content)
