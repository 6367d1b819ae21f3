"""``ringfence ca``: make the certificate authority, serve it, and look after it.

    ringfence ca init   --config ca.toml [--passphrase-file F]
    ringfence ca serve  --config ca.toml [--passphrase-file F]
    ringfence ca token  --config ca.toml --node NAME [--ttl-s 600]
    ringfence ca status --config ca.toml [--json]

Secrets come from files and go to stdout only where that is the command's
purpose (``token``).
"""

import argparse
import json
import secrets
import sqlite3
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import trio

from ca.authority import attestation, hierarchy, logs
from ca.authority.config import AuthorityConfig
from ca.authority.errors import AuthorityError
from ca.authority.keys import read_passphrase
from ca.authority.records import TokenRecord
from ca.authority.serve import serve
from ca.authority.status import describe, render
from ca.authority.store import Store
from ca.spiffe import SpiffeId, SpiffeIdError

_DEFAULT_CONFIG: Final = Path("/etc/ringfence/ca.toml")
_DEFAULT_TOKEN_TTL_S: Final = 600
_MAX_TOKEN_TTL_S: Final = 7 * 86_400


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``ca`` and its commands; each sets ``run``, a callable from arguments to exit status."""
    parser = subparsers.add_parser("ca", help="the certificate authority", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="ca_command", required=True, metavar="COMMAND")

    init = _command(commands, "init", _init, "make a root and an intermediate, with encrypted keys")
    server = _command(commands, "serve", _serve, "serve agents until SIGTERM")
    for command in (init, server):
        command.add_argument(
            "--passphrase-file", type=Path, metavar="FILE", help="instead of passphrase_file in ca.toml; mode 0600"
        )
    token = _command(commands, "token", _token, "make a one-time join token for a node and print it")
    token.add_argument("--node", required=True, metavar="NAME", help="the only node that may use it")
    token.add_argument("--ttl-s", type=_token_ttl_s, default=_DEFAULT_TOKEN_TTL_S, metavar="S", help="%(default)s")
    status = _command(commands, "status", _status, "show keys, ages, nodes and pending tokens")
    status.add_argument("--json", action="store_true", help="for programs")


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text)
    command.add_argument("--config", type=Path, default=_DEFAULT_CONFIG, metavar="FILE", help="%(default)s")
    command.set_defaults(run=lambda arguments: _reported(run, arguments))
    return command


def _reported(run: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    try:
        return run(arguments)
    except (AuthorityError, sqlite3.Error, OSError) as exc:
        print(f"ringfence ca {arguments.ca_command}: {exc}", file=sys.stderr)
        return 1


def _init(arguments: argparse.Namespace) -> int:
    config = AuthorityConfig.load(arguments.config)
    passphrase = read_passphrase(arguments.passphrase_file or config.passphrase_file)
    made = hierarchy.create(config, passphrase=passphrase, at=datetime.now(UTC))
    print(f"made the authority of {config.trust_domain} in {config.state_dir}")
    print(f"  root          valid until {made.roots[0].not_valid_after_utc:%Y-%m-%d}")
    print(f"  intermediate  valid until {made.issuer.certificate.not_valid_after_utc:%Y-%m-%d}")
    print(f"  trust bundle  {config.bundle_file} (public: copy it to every agent)")
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    config = AuthorityConfig.load(arguments.config)
    passphrase = read_passphrase(arguments.passphrase_file or config.passphrase_file)
    logs.set_up()

    async def main() -> None:
        await serve(config, passphrase=passphrase)

    trio.run(main)
    return 0


def _token(arguments: argparse.Namespace) -> int:
    config = AuthorityConfig.load(arguments.config)
    try:
        SpiffeId.node(config.trust_domain, arguments.node)
    except SpiffeIdError as exc:
        raise AuthorityError(f"--node {arguments.node!r}: {exc}") from exc
    at = datetime.now(UTC)
    token = attestation.format_token(secrets.token_bytes(attestation.TOKEN_RANDOM_BYTES))
    record = TokenRecord(
        token_hash=attestation.token_hash(token),
        node=arguments.node,
        expires_at=at + timedelta(seconds=arguments.ttl_s),
    )
    store = Store.open(config.database)
    try:
        store.add_token(record, at=at)
    finally:
        store.close()
    print(token)
    return 0


def _status(arguments: argparse.Namespace) -> int:
    config = AuthorityConfig.load(arguments.config)
    store = Store.open(config.database)
    try:
        found: dict[str, Any] = describe(config, store, at=datetime.now(UTC))
    finally:
        store.close()
    print(json.dumps(found, indent=2) if arguments.json else render(found))
    return 0


def _token_ttl_s(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= _MAX_TOKEN_TTL_S:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of seconds from 1 to {_MAX_TOKEN_TTL_S}")
    return int(text)
