"""Sessions with a PostgreSQL server: what is asked of the server, of the way to it, and of whoever holds our password.

A server that runs without ``fsync`` is refused, and ``synchronous_commit`` is
never off: a commit that returned survives a power cut.  A server on another
machine has to prove its name, and is never spoken to in clear.
"""

import os
from collections.abc import Mapping
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

from ca.authority.errors import AuthorityError
from ca.authority.store.database import Row
from ca.authority.store.location import PostgresAddress, require_private_environment
from ca.authority.store.watchdog import Watchdog

_CONNECT_TIMEOUT_S: Final = 3  # libpq's unit is whole seconds, at least 2
_SETTINGS: Final = """
    SET statement_timeout = '{statement_s}s';
    SET lock_timeout = '3s';
    SET idle_in_transaction_session_timeout = '10s';
    SET idle_session_timeout = '60s'
"""  # a replica that hangs neither blocks the others nor stays their leader
_OLDEST_VERSION: Final = 14_00_00  # idle_session_timeout; 13 and older are no longer maintained
_LOCAL_HOSTS: Final = ("localhost", "127.0.0.1", "::1")


def connect(address: PostgresAddress, watchdog: Watchdog, *, statement_s: int) -> psycopg.Connection[Row]:
    """Open a session, and refuse a server that could lose what it committed.

    The server gives a statement up after ``statement_s``.

    Raises:
        psycopg.Error: it can not be reached, or lets us not in.
        AuthorityError: it can, but must not be used so.
    """
    session: psycopg.Connection[Row] = psycopg.connect(address.url, autocommit=True, **_connection_options(address))
    try:
        with watchdog.watching(session.fileno()):
            session.execute(_SETTINGS.format(statement_s=statement_s).encode())
            _require_durable(session, address)
    except BaseException:
        session.close()
        raise
    return session


def _require_durable(session: psycopg.Connection[Row], address: PostgresAddress) -> None:
    row = session.execute(
        "SELECT current_setting('server_version_num')::int, current_setting('fsync'),"
        " current_setting('synchronous_commit'), current_schema()"
    ).fetchone()
    assert row is not None
    version, fsync, synchronous_commit, schema = row
    if version < _OLDEST_VERSION:
        raise AuthorityError(f"{address}: PostgreSQL {version // 10000} is too old; 14 or later is needed")
    if fsync != "on":
        raise AuthorityError(
            f"{address}: the server runs with fsync = {fsync}, so that a power cut would lose the records of "
            "certificates that are in use; set fsync = on in postgresql.conf"
        )
    if schema is None:
        raise AuthorityError(f"{address}: none of the schemas in search_path exists; create one for Ringfence")
    if synchronous_commit == "off":
        session.execute("SET synchronous_commit = on")


def _connection_options(address: PostgresAddress) -> dict[str, Any]:
    """What we want of libpq where the URL does not say otherwise.

    Raises:
        AuthorityError: a password that others can read, or a way that somebody in between could read.
    """
    try:
        given = conninfo_to_dict(address.url)
    except psycopg.Error:  # its text may quote the URL
        raise AuthorityError(
            "[ca] database: PostgreSQL's client library does not understand this URL; "
            "write postgresql://user@host:5432/database?option=value"
        ) from None
    require_private_environment({key: str(value) for key, value in given.items()}, os.environ)
    options: dict[str, Any] = {
        "application_name": "ringfence-ca",
        "connect_timeout": _CONNECT_TIMEOUT_S,
        "keepalives_idle": 5,  # s
        "keepalives_interval": 2,  # s
        "keepalives_count": 2,
        "tcp_user_timeout": 4000,  # ms
        "target_session_attrs": "read-write",  # of several hosts the one that takes writes
    }
    if _is_remote(given):
        mode = given.get("sslmode") or os.environ.get("PGSSLMODE")
        if mode in ("disable", "allow", "prefer"):
            raise AuthorityError(
                f"{address}: sslmode={mode} lets whoever is in between read and change what the authority stores; "
                "use sslmode=verify-full"
            )
        options["sslmode"] = mode or "verify-full"
    options = {key: value for key, value in options.items() if key not in given}
    password = address.password()
    return options if password is None else {**options, "password": password}


def _is_remote(given: Mapping[str, object]) -> bool:
    """Whether a connection may leave this machine; a service file decides for itself."""
    if "service" in given or os.environ.get("PGSERVICE"):
        return False
    named = given.get("hostaddr") or given.get("host") or os.environ.get("PGHOST") or ""
    hosts = str(named).split(",")
    return any(host and not host.startswith(("/", "@")) and host not in _LOCAL_HOSTS for host in hosts)
