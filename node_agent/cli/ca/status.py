"""``ringfence ca status``: what there is, and what is due next."""

import argparse
import json
from datetime import UTC, datetime
from typing import Any

from ca.authority.config import AuthorityConfig
from ca.authority.status import describe, render
from ca.authority.store import Store
from node_agent.cli.ca.command import Commands, add_command


def add_commands(commands: Commands) -> None:
    """Add the commands of this file to ``ringfence ca``."""
    status = add_command(commands, "status", _status, "show keys, ages, nodes and pending tokens")
    status.add_argument("--json", action="store_true", help="for programs")


def _status(arguments: argparse.Namespace) -> int:
    config = AuthorityConfig.load(arguments.config)
    store = Store.open(config.database)
    try:
        found: dict[str, Any] = describe(config, store, at=datetime.now(UTC))
    finally:
        store.close()
    print(json.dumps(found, indent=2) if arguments.json else render(found))
    return 0
