"""``ringfence ca revoke``: end what a certificate, an identity or a node may do, within seconds.

    ringfence ca revoke serial HEX           [--reason TEXT] [--undo]
    ringfence ca revoke identity SPIFFE_ID   [--reason TEXT] [--undo] [--unseen]
    ringfence ca revoke node NAME            [--reason TEXT] [--undo]
    ringfence ca revoke list                 [--json]

They work on the database, beside a server that runs, which follows within
seconds; so do its agents.
"""

import argparse
import json
import sys
from datetime import UTC, datetime
from typing import Any, Final

from ca.authority.errors import AuthorityError
from ca.authority.store import Store
from ca.authority.store.revocations import Revoked
from ca.spiffe import SpiffeId, SpiffeIdError
from ca.trust import RevocationKind, serial_hex, serial_of
from node_agent.cli.ca.command import Commands, add_command, opened
from node_agent.cli.table import table
from node_agent.cli.terminal import Paint, printable

_MAX_REASON: Final = 200  # in every record of a connection that is cut for it


def add_commands(commands: Commands) -> None:
    """Add the commands of this file to ``ringfence ca``."""
    text = "end what a certificate, an identity or a node may do, within seconds"
    parser = commands.add_parser("revoke", help=text, description=text)
    group = parser.add_subparsers(dest="revoke_command", required=True, metavar="COMMAND")
    serial = add_command(group, "serial", _serial, "one certificate; its identity may have another")
    serial.add_argument("serial", metavar="HEX", help="as `ringfence certs`, the authority's log or openssl show it")
    identity = add_command(group, "identity", _identity, "an identity: all its certificates, and no new ones")
    identity.add_argument("identity", metavar="SPIFFE_ID")
    identity.add_argument("--unseen", action="store_true", help="even if no certificate was ever issued for it here")
    node = add_command(group, "node", _node, "a node: every certificate it was issued, and no new ones")
    node.add_argument("node", metavar="NAME")
    for command in (serial, identity, node):
        command.add_argument("--reason", type=_reason, default="", metavar="TEXT", help="for the records and the logs")
        command.add_argument("--undo", action="store_true", help="take it back, as if it had never been revoked")
    listed = add_command(group, "list", _list, "show what is revoked")
    listed.add_argument("--json", action="store_true", help="one JSON array")


def _serial(arguments: argparse.Namespace) -> int:
    try:
        serial = serial_of(arguments.serial)
    except ValueError as exc:
        raise AuthorityError(str(exc)) from exc
    with opened(arguments) as (_, store):
        if arguments.undo:
            return _undone(store, RevocationKind.SERIAL, serial_hex(serial))
        return _done(store.revocations.revoke_serial(serial, at=datetime.now(UTC), why=arguments.reason))


def _identity(arguments: argparse.Namespace) -> int:
    try:
        identity = SpiffeId.parse(arguments.identity)
    except SpiffeIdError as exc:
        raise AuthorityError(str(exc)) from exc
    with opened(arguments) as (config, store):
        if arguments.undo:
            return _undone(store, RevocationKind.IDENTITY, str(identity))
        if identity.trust_domain == config.trust_domain:
            if identity.node_name is not None:
                raise AuthorityError(f"{identity} is a node's: run ringfence ca revoke node {identity.node_name}")
            if identity.service_account is None:
                raise AuthorityError(
                    f"{identity} is not a workload's (/ns/<namespace>/sa/<service-account>); the authority itself is "
                    "not revoked but replaced: ringfence ca rotate"
                )
        revoked = store.revocations.revoke_identity(
            str(identity), at=datetime.now(UTC), why=arguments.reason, unseen=arguments.unseen
        )
        return _done(revoked)


def _node(arguments: argparse.Namespace) -> int:
    with opened(arguments) as (_, store):
        if arguments.undo:
            return _undone(store, RevocationKind.NODE, arguments.node)
        _done(store.revocations.revoke_node(arguments.node, at=datetime.now(UTC), why=arguments.reason))
        print(
            "When the node is rebuilt, let it in again with a new token: "
            f"ringfence ca token --node {printable(arguments.node)}",
            file=sys.stderr,
        )
        return 0


def _list(arguments: argparse.Namespace) -> int:
    with opened(arguments) as (_, store):
        revoked = store.revocations.read(at=datetime.now(UTC))
    if arguments.json:
        print(json.dumps([_as_data(each) for each in revoked], indent=2))
        return 0
    if not revoked:
        print("nothing is revoked")
        return 0
    rows = [
        (
            str(each.kind),
            printable(each.value),
            f"{each.at:%Y-%m-%dT%H:%M:%SZ}",
            _until(each),
            str(each.certificates),
            printable(each.why),
        )
        for each in revoked
    ]
    print(table(("KIND", "WHAT", "SINCE", "UNTIL", "CERTIFICATES", "WHY"), rows, Paint(sys.stdout)))
    return 0


def _done(revoked: Revoked) -> int:
    many = "1 certificate" if revoked.certificates == 1 else f"{revoked.certificates} certificates"
    print(
        f"revoked {revoked.kind} {printable(revoked.value)}, {many} of now, until {_until(revoked)}; "
        "every agent has heard of it when `ringfence ca status` shows them at the newest trust version"
    )
    return 0


def _undone(store: Store, kind: RevocationKind, value: str) -> int:
    store.revocations.undo(kind, value)
    print(f"{kind} {printable(value)} is no longer revoked")
    return 0


def _until(revoked: Revoked) -> str:
    # A node is shut out until somebody lets it in; that its certificates have ended changes nothing for it.
    if revoked.until is None or revoked.kind is RevocationKind.NODE:
        return "undone"
    return f"{revoked.until:%Y-%m-%dT%H:%M:%SZ}"


def _as_data(revoked: Revoked) -> dict[str, Any]:
    return {
        "kind": str(revoked.kind),
        "value": revoked.value,
        "since": revoked.at.isoformat(),
        "certificates_end_at": None if revoked.until is None else revoked.until.isoformat(),
        "certificates": revoked.certificates,
        "reason": revoked.why,
    }


def _reason(text: str) -> str:
    if len(text) > _MAX_REASON or not text.isprintable():
        raise argparse.ArgumentTypeError(f"at most {_MAX_REASON} printable characters, please")
    return text
