"""``ringfence log-level``: what the running agent logs, for all of it or for one module."""

import argparse
from collections.abc import Mapping
from typing import Any, Final

from node_agent.cli.agent_socket import ask, tell
from node_agent.cli.question import add_agent_options, add_command, show
from node_agent.cli.rows import text
from node_agent.cli.terminal import Paint

LOG_LEVELS: Final = ("debug", "info", "warning", "error")
_DESCRIPTION: Final = """\
Shows or changes what the running agent logs on its standard error, in all its processes, until it is started again.
A module's level stands for what is below it, too.  Access records are not affected: they are always written."""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``log-level``."""
    parser = add_command(
        commands,
        "log-level",
        text="show or change what the running agent logs",
        description=_DESCRIPTION,
        examples=[
            "ringfence log-level                                      # what is in force",
            "ringfence log-level debug                                # everything",
            "ringfence log-level debug --module ringfence.identity    # only that",
            "ringfence log-level --reset --module ringfence.identity  # that as everything else",
            "ringfence log-level --reset                              # all as configured",
        ],
    )
    wanted = parser.add_mutually_exclusive_group()
    wanted.add_argument("level", metavar="LEVEL", nargs="?", choices=LOG_LEVELS, help=", ".join(LOG_LEVELS))
    wanted.add_argument("--reset", action="store_true", help="back to what is configured")
    parser.add_argument("--module", metavar="MODULE", help="only this one, as `logger` in the log has it")
    add_agent_options(parser)
    parser.set_defaults(run=_run, view=view)


def _run(args: argparse.Namespace) -> int:
    if args.level is None and not args.reset:
        show(ask(args.agent, "/log-level"), args)
        return 0
    body: dict[str, str | None] = {"level": args.level}
    if args.module is not None:
        body["module"] = args.module
    show(tell(args.agent, "/log-level", body), args)
    return 0


def view(answer: Mapping[str, Any], _: Paint) -> str:
    """The levels in force."""
    modules: Mapping[str, str] = answer.get("modules") or {}
    return "\n".join(
        [f"log level is {text(answer.get('level'))}", *(f"{text(m)} logs {text(e)}" for m, e in modules.items())]
    )
