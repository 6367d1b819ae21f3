"""What every ``ringfence ca`` command has: where its configuration is, and one line when it can not be done."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeAlias

from ca.authority.config import AuthorityConfig
from ca.authority.errors import AuthorityError
from ca.authority.hierarchy import require_ours
from ca.authority.store import Store
from node_agent.cli.terminal import printable

DEFAULT_CONFIG: Final = Path("/etc/ringfence/ca.toml")
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - it has no other name


def add_command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    """Add a command with ``--config``; ``run`` goes from arguments to exit status and may raise AuthorityError."""
    command = commands.add_parser(name, help=text, description=text)
    command.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="%(default)s")
    command.set_defaults(run=lambda arguments: _reported(run, arguments))
    return command


def add_passphrase(command: argparse.ArgumentParser) -> None:
    """For commands that need a signing key."""
    command.add_argument(
        "--passphrase-file", type=Path, metavar="FILE", help="instead of passphrase_file in ca.toml; mode 0600"
    )


def add_root_key(command: argparse.ArgumentParser) -> None:
    """For commands that make or use a root key which is not kept with the others."""
    command.add_argument("--root-key", type=Path, metavar="FILE", help="where the root key is kept, if not here")
    command.add_argument(
        "--root-passphrase-file",
        type=Path,
        metavar="FILE",
        help="if the root key has a passphrase of its own; mode 0600",
    )


@contextmanager
def opened(arguments: argparse.Namespace) -> Iterator[tuple[AuthorityConfig, Store]]:
    """The configuration, and the store of the authority that it is about, for the length of the block.

    Raises:
        AuthorityError: there is no authority, or it is of another trust domain than the configuration says.
    """
    config = AuthorityConfig.load(arguments.config)
    store = Store.open(config.database)
    try:
        require_ours(config, store.authorities())
        yield config, store
    finally:
        store.close()


def _reported(run: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    try:
        return run(arguments)
    except BrokenPipeError:  # `ringfence ca status | head`: nobody is there to be told
        raise
    except (AuthorityError, OSError) as exc:
        print(f"ringfence ca {arguments.ca_command}: {printable(str(exc))}", file=sys.stderr)
        return 1
