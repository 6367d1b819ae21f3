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

from node_agent.cli.agent_address import DEFAULT_SOCKET, SOCKET_VARIABLE, default_socket
from node_agent.cli.agent_socket import ask
from node_agent.cli.terminal import Paint

View = Callable[[Any, Paint], str]
Select = Callable[[Any, argparse.Namespace], Any]


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
    select: Select | None = None,
    examples: Sequence[str] = (),
) -> argparse.ArgumentParser:
    """Add the command ``name``, which shows what the agent answers to GET ``path`` (default ``/name``).

    ``select`` leaves of the answer what the command's own options ask for, also with ``--json``.
    """
    parser = add_command(commands, name, text=text, description=f"Shows {text}.", examples=examples)
    add_agent_options(parser)
    parser.set_defaults(run=run_question, path=path or f"/{name}", view=view, select=select, service=None)
    return parser


def add_agent_options(parser: argparse.ArgumentParser) -> None:
    """``--agent`` and ``--json``, which every command has that asks the agent."""
    parser.add_argument(
        "--agent",
        metavar="PATH",
        default=default_socket(),
        help=f"the agent's unix socket; default ${SOCKET_VARIABLE}, else {DEFAULT_SOCKET}",
    )
    parser.add_argument("--json", action="store_true", help="print the agent's answer as JSON")


def run_question(args: argparse.Namespace) -> int:
    """Ask and show; raises AgentUnavailable, which ``main`` turns into one line."""
    show(answer_to(args), args)
    return 0


def answer_to(args: argparse.Namespace) -> Any:
    """What the agent answers, less what the options leave out; raises AgentUnavailable."""
    answer = ask(args.agent, args.path, service=args.service)
    return answer if args.select is None else args.select(answer, args)


def show(answer: Any, args: argparse.Namespace) -> None:
    """Print ``answer`` as ``--json`` or the command's view wants it."""
    print(json.dumps(answer, indent=2) if args.json else args.view(answer, Paint(sys.stdout)))
