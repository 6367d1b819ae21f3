"""``ringfence ca instances``: which machines have attested with a document of theirs.

    ringfence ca instances [--json]
    ringfence ca instances --forget ACCOUNT/INSTANCE

A machine attests once, since whatever runs on it can fetch its document.  One
that has lost its certificate is forgotten on purpose, and may then do so again.
"""

import argparse
import json
from typing import Any

from ca.authority.errors import AuthorityError
from node_agent.cli.ca.command import Commands, add_command, opened


def add_commands(commands: Commands) -> None:
    """Add the commands of this file to ``ringfence ca``."""
    instances = add_command(commands, "instances", _instances, "show machines that attested with a document")
    instances.add_argument(
        "--forget", metavar="ID", help="let this machine attest once more, as shown: ACCOUNT/INSTANCE"
    )
    instances.add_argument("--json", action="store_true", help="for programs")


def _instances(arguments: argparse.Namespace) -> int:
    with opened(arguments) as (_, store):
        if arguments.forget is not None:
            if not store.instances.forget(arguments.forget):
                raise AuthorityError(
                    f"--forget {arguments.forget!r}: no such machine has attested; without it they are shown"
                )
            print(f"{arguments.forget} may attest once more")
            return 0
        found: list[dict[str, Any]] = [
            {
                "instance": each.instance.id,
                "method": each.instance.method,
                "node": each.node,
                "attested_at": each.attested_at.isoformat(),
            }
            for each in store.instances.read()
        ]
    if arguments.json:
        print(json.dumps(found, indent=2))
    elif not found:
        print("no machine has attested with a document")
    else:
        for row in found:
            print(f"{row['instance']}  {row['node']}  {row['attested_at']}")
    return 0
