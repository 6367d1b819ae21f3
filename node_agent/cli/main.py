"""The ``ringfence`` command: runs the agent or the CA, and asks a running agent.

This file only registers: a command is a file of its own, with ``add_parser(commands)``,
which sets ``run``, a callable from arguments to exit code.  Whatever a command needs
is imported when it is used: an operator's question must be answered at once,
without loading the agent.

Exit codes: 0 done, 1 could not be done (one line on stderr says why), 2 wrong
arguments.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Final

from node_agent import __version__
from node_agent.cli import (
    agent,
    bpf,
    certs,
    completion,
    connections,
    dashboard,
    debug,
    endpoints,
    help_topics,
    log_level,
    services,
    status,
    top,
    workloads,
)
from node_agent.cli.agent_socket import AgentUnavailable
from node_agent.cli.terminal import printable

_COMMANDS: Final = (  # the order of --help
    status,
    top,
    workloads,
    services,
    endpoints,
    connections,
    certs,
    dashboard,
    log_level,
    bpf,
    debug,
    completion,
    help_topics,
)
_EPILOG: Final = """\
Started by hand or by systemd: `ringfence ca serve` once per cluster, `ringfence agent` once per node.
The other commands ask the agent on this node through its unix socket; they need the right to use it (root).
Exit codes: 0 done, 1 could not be done (one line on stderr says why), 2 wrong arguments."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    so_far = completion.asked_for()
    command = _command(arguments if so_far is None else so_far)
    parser = build_parser(with_ca=command == "ca")
    if so_far is not None:
        completion.offer(parser)
    _check_command(parser, command)
    args = parser.parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = args.run
    try:
        code = run(args)
        sys.stdout.flush()
        return code
    except AgentUnavailable as error:
        print(f"ringfence: {printable(str(error))}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `ringfence connections | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit fails again
        return 1
    except KeyboardInterrupt:
        return 130


def build_parser(*, with_ca: bool = True) -> argparse.ArgumentParser:
    """The whole command line.  Without ``with_ca`` the signing server is not imported and ``ca`` is only named."""
    parser = argparse.ArgumentParser(
        prog="ringfence",
        description="Identity, encryption and policy for TCP between workloads, without sidecars.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ringfence {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND [OPTIONS]", required=True)

    agent.add_parser(commands)
    if with_ca:
        from node_agent.cli import ca  # noqa: PLC0415  (loads the signing server)

        ca.add_parser(commands)
    else:
        commands.add_parser("ca", help="the certificate authority: init, serve, token, status")
    for command in _COMMANDS:
        command.add_parser(commands)
    parser.set_defaults(known_commands=list(commands.choices))
    return parser


def _check_command(parser: argparse.ArgumentParser, command: str | None) -> None:
    """End with what was probably meant, if anything: argparse lists two dozen names."""
    known: list[str] = parser.get_default("known_commands")
    if command is None or command in known:
        return
    import difflib  # noqa: PLC0415  (only for who mistypes)

    near = difflib.get_close_matches(command, known, n=1)
    remedy = f"did you mean {near[0]}?" if near else "`ringfence help` lists them"
    parser.error(f"there is no command {printable(command)!r}; {remedy}")


def _command(arguments: Sequence[str]) -> str | None:
    return next((argument for argument in arguments if not argument.startswith("-")), None)


if __name__ == "__main__":
    sys.exit(main())
