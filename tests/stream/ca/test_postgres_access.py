"""PostgreSQL as the authority's database: where a password may be, and who may be in between."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from ca.authority.config import AuthorityConfig
from ca.authority.errors import AuthorityError, ConfigError, StoreError
from ca.authority.store import Store
from ca.authority.store.location import PostgresAddress
from ca.authority.store.postgres import PostgresDatabase
from tests.postgres_server import PostgresServer

SECRET: Final = "cor?rect-horse%battery"


# -- passwords --------------------------------------------------------------------


@pytest.fixture
def login(postgres: PostgresServer, address: PostgresAddress, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a user who needs SECRET; nothing of the tester's own libpq settings."""
    for name in [each for each in os.environ if each.startswith("PG")]:
        monkeypatch.delenv(name)
    name = "ca_" + address.url.partition("/ca_")[2].partition("?")[0]
    user = f"user_{name}"
    postgres.execute(f"CREATE ROLE {user} LOGIN PASSWORD '{SECRET}'")
    postgres.execute(f"ALTER DATABASE {name} OWNER TO {user}")
    return postgres.tcp_url(name, user)


def written(path: Path, text: str, mode: int) -> Path:
    path.touch(mode=0o600)
    path.write_text(text)
    path.chmod(mode)
    return path


def configured(directory: Path, text: str, mode: int = 0o644) -> AuthorityConfig:
    return AuthorityConfig.load(written(directory / "ca.toml", f'[ca]\nstate_dir = "{directory}/state"\n{text}', mode))


def test_a_password_file_lets_us_in_and_shows_nowhere(login: str, tmp_path: Path) -> None:
    secret = written(tmp_path / "secret", SECRET + "\n", 0o600)
    config = configured(tmp_path, f'database = "{login}"\ndatabase_password_file = "{secret}"')
    assert SECRET not in f"{config} {config.database}"
    store = Store.open(config.database, create=True)
    assert "127.0.0.1" in str(store.database)
    store.close()


def test_a_password_in_a_ca_toml_of_mode_0600_is_taken_and_shows_nowhere(login: str, tmp_path: Path) -> None:
    url = login.replace("@", ":cor%3Frect-horse%25battery@")
    config = configured(tmp_path, f'database = "{url}"', mode=0o600)
    assert "horse" not in f"{config} {config.database}"
    Store.open(config.database, create=True).close()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:secret@h/d", "postgresql://h/d"),
        ("postgresql://u:se%40cret@h1:1,h2:2/d?sslmode=verify-full", "postgresql://h1:1,h2:2/d"),
        ("postgresql://[fd00::1]:5432/d", "postgresql://[fd00::1]:5432/d"),
        ("postgresql://%2Fvar%2Frun/d", "postgresql://%2Fvar%2Frun/d"),
        ("postgres://u@/d?host=/var/run&password=secret", "postgresql:///var/run/d"),
        ("postgresql:///d", "postgresql:///d"),
        ("postgresql://?service=ca", "PostgreSQL service ca"),
    ],
)
def test_an_address_is_shown_without_user_and_password(url: str, shown: str) -> None:
    address = PostgresAddress.parse(url, password_file=None, private=True)
    assert str(address) == shown
    assert "secret" not in repr(address)


@pytest.mark.parametrize("where", ["postgresql://u:horse@h/d", "postgresql://h/d?user=u&password=horse"])
def test_a_password_in_a_ca_toml_that_others_can_read_is_refused(tmp_path: Path, where: str) -> None:
    with pytest.raises(ConfigError, match=r"ca\.toml:\d+: \[ca\] database: .*database_password_file") as caught:
        configured(tmp_path, f'database = "{where}"')
    assert "horse" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('database = "mysql://u:horse@h/d"', "must begin with postgresql://"),
        ('database = ["postgresql://u:horse@h/d"]', "must be text in quotes"),
        ('database = "postgresql://u:horse@[h/d"', "is not a URL"),
        ('database = "postgresql://u:ho@rse/d"', "database_password_file"),
        ('database = "postgresql://u:ho/rse@h/d"', "write %40 for @"),
        ('database = "postgresql://u:12/34@h/d"', "write %40 for @"),
        ('database = "postgresql://u:12?34@h/d"', "write %40 for @"),
        ('database = "postgresql://u:12#34@h/d"', "must begin with"),
        ('database = "postgresql://u:h:o@h/d"', "database_password_file"),
        ('database_password_file = "/horse"', "is of no use without database"),
        ('database = "postgresql://h/d"\ndatabase_password_file = "horse"', "must be an absolute path"),
    ],
)
def test_a_wrong_address_is_refused_with_its_place(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        configured(tmp_path, text)
    assert "u:horse" not in str(caught.value)


def test_an_option_that_libpq_does_not_know_is_refused_without_quoting_the_url(tmp_path: Path) -> None:
    config = configured(tmp_path, 'database = "postgresql://u:horse@h/d?horse"', mode=0o600)
    with pytest.raises(AuthorityError, match="does not understand this URL") as caught:
        Store.open(config.database)
    assert "horse" not in str(caught.value)


def test_a_wrong_password_says_so_without_quoting_it(login: str, tmp_path: Path) -> None:
    secret = written(tmp_path / "secret", "wrong horse", 0o600)
    config = configured(tmp_path, f'database = "{login}"\ndatabase_password_file = "{secret}"')
    with pytest.raises(AuthorityError, match="password authentication failed") as caught:
        Store.open(config.database)
    assert "horse" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [
        (SECRET, 0o644, "chmod 0600"),
        (SECRET, 0o640, "chmod 0600"),
        ("", 0o600, "on one line"),
        ("two\nlines", 0o600, "on one line"),
        (None, 0o600, "can not be read"),
    ],
)
def test_a_password_file_that_is_none_is_refused(
    login: str, tmp_path: Path, content: str | None, mode: int, says: str
) -> None:
    path = tmp_path / "secret"
    if content is not None:
        written(path, content, mode)
    config = configured(tmp_path, f'database = "{login}"\ndatabase_password_file = "{path}"')
    with pytest.raises(AuthorityError, match=says) as caught:
        Store.open(config.database)
    assert SECRET not in str(caught.value)


def test_libpqs_own_password_file_lets_us_in_unless_others_can_read_it(
    login: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passfile = written(tmp_path / "pgpass", f"*:*:*:*:{SECRET}\n", 0o600)
    monkeypatch.setenv("PGPASSFILE", str(passfile))
    config = configured(tmp_path, f'database = "{login}"')
    Store.open(config.database, create=True).close()

    passfile.chmod(0o644)
    with pytest.raises(AuthorityError, match=r"pgpass: .*chmod 0600"):
        Store.open(config.database)


def test_a_service_file_lets_us_in_unless_others_can_read_a_password_in_it(
    login: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = PostgresAddress.parse(login, password_file=None, private=False)
    user, _, rest = address.url.removeprefix("postgresql://").partition("@")
    host, _, database = rest.partition("/")
    name, _, port = host.partition(":")
    text = f"[ca]\nhost={name}\nport={port}\ndbname={database}\nuser={user}\npassword={SECRET}\n"
    service = written(tmp_path / "pg_service.conf", text, 0o600)
    monkeypatch.setenv("PGSERVICEFILE", str(service))
    config = configured(tmp_path, 'database = "postgresql://?service=ca"')
    assert str(config.database) == "PostgreSQL service ca"
    Store.open(config.database, create=True).close()

    service.chmod(0o644)
    with pytest.raises(AuthorityError, match=r"pg_service\.conf: .*chmod 0600"):
        Store.open(config.database)


def test_a_password_in_the_environment_is_refused(login: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", SECRET)
    with pytest.raises(AuthorityError, match="PGPASSWORD is set") as caught:
        Store.open(configured(tmp_path, f'database = "{login}"').database)
    assert SECRET not in str(caught.value)


# -- who is in between ------------------------------------------------------------


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer"])
def test_a_server_elsewhere_is_not_spoken_to_in_clear(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))
    config = configured(tmp_path, f'database = "postgresql://u@192.0.2.1/d?sslmode={mode}"')
    with pytest.raises(AuthorityError, match=r"use sslmode=verify-full"):
        Store.open(config.database)


def test_a_server_elsewhere_must_prove_its_name_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    def connect(_url: str, **options: object) -> None:
        asked.append(options)
        raise OSError("enough seen")

    monkeypatch.setattr("ca.authority.store.postgres_session.psycopg.connect", connect)
    monkeypatch.setenv("PGPASSFILE", "/nonexistent")
    for url in ("postgresql://db.example/d", "postgresql://db.example/d?sslmode=require", "postgresql://localhost/d"):
        with pytest.raises(StoreError):
            PostgresDatabase.open(PostgresAddress.parse(url, password_file=None, private=False))
    assert [each.get("sslmode") for each in asked] == ["verify-full", None, None]


def test_without_psycopg_the_error_says_how_to_get_it(tmp_path: Path) -> None:
    config = tmp_path / "ca.toml"
    config.write_text('[ca]\ndatabase = "postgresql://localhost/d"\n')
    hidden = "import sys; sys.modules['psycopg'] = None; from node_agent.cli.main import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", hidden, "ca", "status", "--config", str(config)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    assert "pip install 'ringfence[postgres]'" in done.stderr
    assert done.stderr.count("\n") == 1
