"""``ringfence ca``: make the certificate authority, serve it, and look after it.

    ringfence ca init   --config ca.toml [--passphrase-file F]
    ringfence ca install-intermediate FILE
    ringfence ca rotate [root|intermediate]
    ringfence ca serve  --config ca.toml [--passphrase-file F]
    ringfence ca token  --config ca.toml --node NAME [--ttl-s 600]
    ringfence ca instances [--forget ID] [--json]
    ringfence ca federation add|list|refresh|remove|bundle
    ringfence ca revoke serial|identity|node|list
    ringfence ca backup FILE [--force]
    ringfence ca restore FILE
    ringfence ca status --config ca.toml [--json]

One file a group of commands; each has ``add_commands(commands)``.  Secrets come
from files and go to stdout only where that is the command's purpose (``token``).
"""

import argparse

from node_agent.cli.ca import backup, federation, instances, keys, nodes, revoke, rotate, serve, status


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``ca`` and its commands; each sets ``run``, a callable from arguments to exit status."""
    parser = subparsers.add_parser(
        "ca",
        help="the certificate authority",
        description="Makes the certificate authority, serves it, and looks after it.",
    )
    commands = parser.add_subparsers(dest="ca_command", required=True, metavar="COMMAND")
    for group in (keys, rotate, serve, nodes, instances, federation, revoke, backup, status):  # the order of --help
        group.add_commands(commands)
