"""``ringfence ca init``: the signing keys."""

import argparse
from datetime import UTC, datetime

from ca.authority import founding
from ca.authority.config import AuthorityConfig
from ca.authority.keys import read_passphrase
from node_agent.cli.ca.command import Commands, add_command, add_passphrase


def add_commands(commands: Commands) -> None:
    """Add the commands of this file to ``ringfence ca``."""
    init = add_command(commands, "init", _init, "make a root and an intermediate, with encrypted keys")
    add_passphrase(init)


def _init(arguments: argparse.Namespace) -> int:
    config = AuthorityConfig.load(arguments.config)
    passphrase = read_passphrase(arguments.passphrase_file or config.passphrase_file)
    made = founding.create(config, passphrase=passphrase, at=datetime.now(UTC))
    print(f"made the authority of {config.trust_domain} in {config.state_dir}")
    print(f"  root          valid until {made.roots[0].not_valid_after_utc:%Y-%m-%d}")
    print(f"  intermediate  valid until {made.issuer.certificate.not_valid_after_utc:%Y-%m-%d}")
    print(f"  trust bundle  {config.bundle_file} (public: copy it to every agent)")
    return 0
