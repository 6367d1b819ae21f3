"""The ``ringfence`` command: runs the agent or the CA, and asks a running agent.

This file only registers: a command is a file of its own, with ``add_parser(commands)``,
which sets ``run``, a callable from arguments to exit code.  A file is imported when
its command is used: an operator's question must be answered at once, without
loading the agent, or even what the other commands need.

Exit codes: 0 done, 1 could not be done (one line on stderr says why), 2 wrong
arguments.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from io import TextIOWrapper
from typing import Final, NoReturn

from node_agent import __version__
from node_agent.cli.agent_address import AgentUnavailable
from node_agent.cli.terminal import printable

COMMANDS: Final = {  # the order of --help, and the file of each command in this folder
    "agent": "agent",
    "ca": "ca",
    "status": "status",
    "top": "top",
    "workloads": "workloads",
    "services": "services",
    "endpoints": "endpoints",
    "connections": "connections",
    "certs": "certs",
    "policies": "policies",
    "policy": "policy",
    "explain": "explain",
    "dashboard": "dashboard",
    "log-level": "log_level",
    "bpf": "bpf",
    "debug": "debug",
    "bundle": "bundle",
    "completion": "completion",
    "help": "help_topics",
}
_CA_HELP: Final = "the certificate authority: init, serve, token, status"
_EPILOG: Final = """\
Started by hand or by systemd: `ringfence ca serve` once per cluster, `ringfence agent` once per node.
Most of the others ask the agent on this node through its unix socket; they need the right to use it (root).
Exit codes: 0 done, 1 could not be done (one line on stderr says why), 2 wrong arguments."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = _with_options_last(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8 must not end a command
    so_far = _completion_asked_for()
    command = _command(arguments if so_far is None else so_far)
    parser = build_parser(command)
    if so_far is not None:
        from node_agent.cli.completion import offer  # noqa: PLC0415  (only when TAB is pressed)

        offer(parser)
    if command is not None and command not in COMMANDS:
        _refuse(parser, command)
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


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The command line as far as it matters for ``command``; None, or no command, for the whole.

    A question must be answered at once: the files of the other commands are not
    imported.  ``ca`` is only named in the whole, because it loads the signing server.
    """
    parser = argparse.ArgumentParser(
        prog="ringfence",
        description="Identity, encryption and policy for TCP between workloads, without sidecars.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ringfence {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND [OPTIONS]", required=True)
    for name in [command] if command in COMMANDS else COMMANDS:
        if name == "ca" and command != "ca":
            commands.add_parser("ca", help=_CA_HELP)
        else:
            import_module(f"node_agent.cli.{COMMANDS[name]}").add_parser(commands)
    return parser


def _refuse(parser: argparse.ArgumentParser, command: str) -> NoReturn:
    """End with what was probably meant, if anything: argparse would list two dozen names."""
    import difflib  # noqa: PLC0415  (only for who mistypes)

    near = difflib.get_close_matches(command, COMMANDS, n=1)
    remedy = f"did you mean {near[0]}?" if near else "`ringfence help` lists them"
    parser.error(f"there is no command {printable(command)!r}; {remedy}")


def _completion_asked_for() -> list[str] | None:
    """The words so far when a shell asks what may follow (completion.py), else None."""
    return os.environ.get("COMP_LINE", "").split()[1:] if "_ARGCOMPLETE" in os.environ else None


def _with_options_last(arguments: Sequence[str]) -> list[str]:
    """``--agent PATH status``, ``--json status``: every command's options are understood before it, too."""
    rest, moved = list(arguments), list[str]()
    while rest and (rest[0] in ("--agent", "--json") or rest[0].startswith("--agent=")):
        width = 2 if rest[0] == "--agent" else 1
        moved += rest[:width]
        del rest[:width]
    if not rest or rest[0].startswith("-"):
        return rest  # there is no command: argparse says so
    end = rest.index("--") if "--" in rest else len(rest)
    return [*rest[:end], *moved, *rest[end:]]


def _command(arguments: Sequence[str]) -> str | None:
    return next((argument for argument in arguments if not argument.startswith("-")), None)


if __name__ == "__main__":
    sys.exit(main())
