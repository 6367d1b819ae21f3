"""``ringfence log-level``: change what the running agent logs."""

import argparse
from collections.abc import Mapping
from typing import Any, Final

from node_agent.cli.agent_socket import tell
from node_agent.cli.question import add_agent_options, add_command, show
from node_agent.cli.terminal import Paint, printable

LOG_LEVELS: Final = ("debug", "info", "warning", "error")


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``log-level``."""
    parser = add_command(
        commands,
        "log-level",
        text="change what the running agent logs",
        description="Changes what the running agent logs on stderr, until it is restarted. "
        "Access records are always written.",
        examples=["ringfence log-level debug"],
    )
    parser.add_argument("level", metavar="LEVEL", choices=LOG_LEVELS, help=", ".join(LOG_LEVELS))
    add_agent_options(parser)
    parser.set_defaults(run=_run, view=view)


def _run(args: argparse.Namespace) -> int:
    show(tell(args.agent, "/log-level", {"level": args.level}), args)
    return 0


def view(answer: Mapping[str, Any], _: Paint) -> str:
    """The level now in force."""
    return f"log level is now {printable(str(answer.get('level')))}"
