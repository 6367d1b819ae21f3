"""``ringfence ca serve``: run the authority."""

import argparse

import trio

from ca.authority import logs
from ca.authority.config import AuthorityConfig
from ca.authority.keys import ask_passphrase
from ca.authority.serve import serve
from node_agent.cli.ca.command import Commands, add_command, add_passphrase


def add_commands(commands: Commands) -> None:
    """Add the commands of this file to ``ringfence ca``."""
    server = add_command(commands, "serve", _serve, "serve agents until SIGTERM")
    add_passphrase(server)


def _serve(arguments: argparse.Namespace) -> int:
    config = AuthorityConfig.load(arguments.config)
    passphrase = ask_passphrase(arguments.passphrase_file or config.passphrase_file)
    logs.set_up()

    async def main() -> None:
        await serve(config, passphrase=passphrase)

    trio.run(main)
    return 0
