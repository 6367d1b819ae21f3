"""Where the database is: a file for SQLite, or the address of a PostgreSQL server.

An address may come with a password only where no other user can read it: from
``database_password_file`` (mode 0600), from libpq's own password file, or in a
ca.toml with mode 0600.  It is never shown: ``str()`` has host and name only.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self
from urllib.parse import parse_qs, urlsplit

from ca.authority.errors import AuthorityError

_SCHEMES: Final = ("postgresql", "postgres")
_HOST: Final = r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.%a-z]+\]|%2[Ff][A-Za-z0-9._%-]*)?(:[0-9]{1,5})?"
_HOSTS: Final = re.compile(f"{_HOST}(,{_HOST})*")  # libpq takes several; one may be a socket's directory
_OPTION: Final = re.compile(r"[a-z_]+")
_GROUP_AND_WORLD: Final = 0o077
_MAX_PASSWORD_BYTES: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresAddress:
    """A connection URL in libpq's form, and where its password is."""

    url: str = field(repr=False)
    password_file: Path | None = None

    @classmethod
    def parse(cls, url: str, *, password_file: Path | None, private: bool) -> Self:
        """Read the URL of ca.toml; ``private``: nobody but its owner can read the file that it stands in.

        Raises:
            ValueError: with a text that never quotes the URL, which may hold a password.
        """
        try:
            parts = urlsplit(url)
            options = parse_qs(parts.query, keep_blank_values=True)
            secret = parts.password is not None or "password" in options
        except ValueError:
            raise ValueError("is not a URL: write postgresql://user@host:5432/database") from None
        if parts.scheme not in _SCHEMES or parts.fragment:
            raise ValueError("must begin with postgresql:// as in postgresql://user@host:5432/database")
        # A password with one of these in it, not escaped, would be taken for a host or a name, and shown as that.
        hosts = parts.netloc.rpartition("@")[2]
        if not _HOSTS.fullmatch(hosts) or "@" in parts.path or not all(map(_OPTION.fullmatch, options)):
            raise ValueError(
                "is not a URL that can be read safely: write %40 for @, %2F for /, %3A for :, %3F for ? and %23 for # "
                "in a user name or password"
            )
        if secret and password_file is not None:
            raise ValueError("holds a password, and database_password_file names another: keep the file")
        if secret and not private:
            raise ValueError(
                "holds a password in a file that other users can read: put the password alone into a file with mode "
                "0600 and name it as database_password_file"
            )
        return cls(url=url, password_file=password_file)

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        options = parse_qs(parts.query)
        host = parts.netloc.rpartition("@")[2] or ",".join(options.get("host", []))
        if not host and "service" in options:
            return f"PostgreSQL service {options['service'][0]}"
        name = parts.path.removeprefix("/") or ",".join(options.get("dbname", []))
        return f"postgresql://{host}/{name}"

    def password(self) -> str | None:
        """Read the password file; None without one: libpq then looks where it always does.

        Raises:
            AuthorityError: it can not be read, is open to other users, or holds no password.
        """
        path = self.password_file
        if path is None:
            return None
        try:
            require_private(path)
            text = path.read_bytes()[: _MAX_PASSWORD_BYTES + 2].removesuffix(b"\n").removesuffix(b"\r").decode()
        except OSError as exc:
            raise AuthorityError(f"{path}: the database's password can not be read: {exc.strerror}") from exc
        except UnicodeDecodeError:
            raise AuthorityError(f"{path}: the database's password is not UTF-8") from None
        if not text or len(text) > _MAX_PASSWORD_BYTES or "\n" in text or "\0" in text:
            raise AuthorityError(
                f"{path}: must hold the database's password on one line, 1 to {_MAX_PASSWORD_BYTES} bytes"
            )
        return text


DatabaseLocation = Path | PostgresAddress


def require_private_environment(parameters: Mapping[str, str], environ: Mapping[str, str]) -> None:
    """Refuse a password where other users or programs can read it; libpq would take it without a word.

    ``parameters`` are those of the connection, ``environ`` is the process's environment.

    Raises:
        AuthorityError: naming the place and what to do.
    """
    if environ.get("PGPASSWORD"):
        raise AuthorityError(
            "PGPASSWORD is set: other programs can read an environment; unset it and name a file with mode 0600 as "
            "database_password_file under [ca]"
        )
    home = Path(environ.get("HOME") or "~").expanduser()
    passfile = Path(parameters.get("passfile") or environ.get("PGPASSFILE") or home / ".pgpass")
    if passfile.exists():
        require_private(passfile)
    if parameters.get("service") or environ.get("PGSERVICE"):
        system = Path(environ.get("PGSYSCONFDIR") or "/etc/postgresql-common") / "pg_service.conf"
        for path in (Path(environ.get("PGSERVICEFILE") or home / ".pg_service.conf"), system):
            if path.is_file() and os.access(path, os.R_OK) and _has_password(path):
                require_private(path)


def require_private(path: Path) -> None:
    """Refuse a file that holds a password and is open to other users.

    Raises:
        AuthorityError: it is.
        OSError: it can not be looked at.
    """
    mode = path.stat().st_mode & 0o777
    if mode & _GROUP_AND_WORLD:
        raise AuthorityError(
            f"{path}: holds the database's password and is open to other users (mode {mode:04o}); "
            f"run: chmod 0600 {path}"
        )


def _has_password(service_file: Path) -> bool:
    lines = service_file.read_text(encoding="utf-8", errors="replace").splitlines()
    return any(line.strip().lower().startswith("password") for line in lines)
