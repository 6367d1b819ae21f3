"""``ringfence ca token``: let a node in."""

import argparse
import secrets
import sys
from datetime import UTC, datetime, timedelta
from typing import Final

from ca.authority import attestation
from ca.authority.errors import AuthorityError
from ca.authority.records import TokenRecord
from ca.spiffe import SpiffeId, SpiffeIdError
from node_agent.cli.ca.command import Commands, add_command, opened

_DEFAULT_TOKEN_TTL_S: Final = 600
_MAX_TOKEN_TTL_S: Final = 7 * 86_400


def add_commands(commands: Commands) -> None:
    """Add the commands of this file to ``ringfence ca``."""
    token = add_command(commands, "token", _token, "make a one-time join token for a node and print it")
    token.add_argument("--node", type=_node_name, required=True, metavar="NAME", help="the only node that may use it")
    token.add_argument("--ttl-s", type=_token_ttl_s, default=_DEFAULT_TOKEN_TTL_S, metavar="S", help="%(default)s")


def _token(arguments: argparse.Namespace) -> int:
    at = datetime.now(UTC)
    token = attestation.format_token(secrets.token_bytes(attestation.TOKEN_RANDOM_BYTES))
    record = TokenRecord(
        token_hash=attestation.token_hash(token),
        node=arguments.node,
        expires_at=at + timedelta(seconds=arguments.ttl_s),
    )
    with opened(arguments) as (config, store):
        if attestation.JOIN_TOKEN not in config.attestation.plugins:
            raise AuthorityError(
                f"{arguments.config}: [attestation] plugins: join tokens are not enabled, and nobody could use one; "
                f'add "{attestation.JOIN_TOKEN}" and restart the server'
            )
        store.add_token(record, at=at)
        shut_out = store.revocations.shut_out().get(arguments.node)
    if shut_out is not None:
        print(
            f"ringfence ca token: {arguments.node} is revoked since {shut_out[0]:%Y-%m-%dT%H:%M:%SZ}; "
            "this token lets it in again, and what it was issued before stays revoked",
            file=sys.stderr,
        )
    print(token)
    return 0


def _node_name(text: str) -> str:
    try:
        SpiffeId.node("any", text)
    except SpiffeIdError as exc:
        raise argparse.ArgumentTypeError(f"{text!r}: {exc}") from exc
    return text


def _token_ttl_s(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= _MAX_TOKEN_TTL_S:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of seconds from 1 to {_MAX_TOKEN_TTL_S}")
    return int(text)
