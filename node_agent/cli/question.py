"""A command that asks the agent one question and shows the answer: what such commands have in common.

A command's file has ``add_parser(commands)``, which calls ``add_question`` and adds
what is its own.  What the command shows is a *view*: a function of the agent's
answer, without I/O.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from node_agent.cli.agent_socket import DEFAULT_SOCKET, ask
from node_agent.cli.terminal import Paint

View = Callable[[Any, Paint], str]


def add_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    *,
    text: str,
    description: str,
    examples: Sequence[str] = (),
) -> argparse.ArgumentParser:
    """Add the command ``name``; ``text`` is its line in the list of commands, ``examples`` end its ``--help``.

    An example is ``command line  # what it does``; a percent sign needs no care.
    """
    epilog = "\n".join(["examples:", *(f"  {example}" for example in examples)]) if examples else None
    return commands.add_parser(
        name,
        help=text,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_question(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    *,
    view: View,
    text: str,
    path: str | None = None,
    examples: Sequence[str] = (),
) -> argparse.ArgumentParser:
    """Add the command ``name``, which shows what the agent answers to GET ``path`` (default ``/name``)."""
    parser = add_command(commands, name, text=text, description=f"Shows {text}.", examples=examples)
    add_agent_options(parser)
    parser.set_defaults(run=run_question, path=path or f"/{name}", view=view, service=None)
    return parser


def add_agent_options(parser: argparse.ArgumentParser) -> None:
    """``--agent`` and ``--json``, which every command has that asks the agent."""
    parser.add_argument(
        "--agent", metavar="PATH", default=DEFAULT_SOCKET, help=f"the agent's unix socket; default {DEFAULT_SOCKET}"
    )
    parser.add_argument("--json", action="store_true", help="print the agent's answer as JSON")


def run_question(args: argparse.Namespace) -> int:
    """Ask and show; raises AgentUnavailable, which ``main`` turns into one line."""
    show(ask(args.agent, args.path, service=args.service), args)
    return 0


def show(answer: Any, args: argparse.Namespace) -> None:
    """Print ``answer`` as ``--json`` or the command's view wants it."""
    print(json.dumps(answer, indent=2) if args.json else args.view(answer, Paint(sys.stdout)))
