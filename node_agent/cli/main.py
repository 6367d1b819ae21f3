"""The ``ringfence`` command: runs the agent or the CA, and asks a running agent.

Whatever a command needs is imported when it is used: an operator's question
must be answered at once, without loading the agent.

Exit codes: 0 done, 1 could not be done (one line on stderr says why), 2 wrong
arguments.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from node_agent import __version__
from node_agent.cli import views
from node_agent.cli.agent_socket import DEFAULT_SOCKET, AgentUnavailable, ask, tell
from node_agent.cli.terminal import Paint, printable

LOG_LEVELS: Final = ("debug", "info", "warning", "error")
_AGENT_CONFIG: Final = "/etc/ringfence/agent.toml"
_EPILOG: Final = """\
Started by hand or by systemd: `ringfence ca serve` once per cluster, `ringfence agent` once per node.
The other commands ask the agent on this node through its unix socket; they need the right to use it (root).
Exit codes: 0 done, 1 could not be done (one line on stderr says why), 2 wrong arguments."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser(with_ca=_command(arguments) == "ca")
    args = parser.parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = args.run
    try:
        code = run(args)
        sys.stdout.flush()
        return code
    except AgentUnavailable as error:
        return _fail(error)
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

    agent = commands.add_parser("agent", help="run the agent of this node", description=_run_agent.__doc__)
    agent.add_argument(
        "--config", metavar="FILE", type=Path, default=Path(_AGENT_CONFIG), help=f"default {_AGENT_CONFIG}"
    )
    agent.set_defaults(run=_run_agent)

    if with_ca:
        from node_agent.cli import ca  # noqa: PLC0415  (loads the signing server)

        ca.add_parser(commands)
    else:
        commands.add_parser("ca", help="the certificate authority: init, serve, token, status")

    _add_question(commands, "status", views.status, "the condition of this node's agent")
    _add_question(commands, "workloads", views.workloads, "the workloads it knows, and which of them it serves")
    _add_question(commands, "services", views.services, "the services it knows, and how many endpoints are ready")
    endpoints = _add_question(commands, "endpoints", views.endpoints, "the endpoints of the services")
    endpoints.add_argument(
        "service", metavar="SERVICE", nargs="?", help="[NAMESPACE/]SERVICE: only this one (namespace `default`)"
    )
    connections = _add_question(commands, "connections", views.connections, "the live connections")
    connections.add_argument("--watch", action="store_true", help="again and again, until Ctrl-C")
    connections.add_argument(
        "--interval", metavar="SECONDS", type=_interval_s, default=1.0, help="how often with --watch; default 1"
    )
    _add_question(commands, "certs", views.certs, "the certificates it holds, and until when")

    log_level = commands.add_parser(
        "log-level", help="change what the running agent logs", description=_log_level.__doc__
    )
    log_level.add_argument("level", metavar="LEVEL", choices=LOG_LEVELS, help=", ".join(LOG_LEVELS))
    _add_agent_options(log_level)
    log_level.set_defaults(run=_log_level)
    return parser


def _add_question(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, view: views.View, text: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=f"Shows {text}.")
    _add_agent_options(parser)
    parser.set_defaults(run=_question, path=f"/{name}", view=view, service=None, watch=False)
    return parser


def _add_agent_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--agent", metavar="PATH", default=DEFAULT_SOCKET, help=f"the agent's unix socket; default {DEFAULT_SOCKET}"
    )
    parser.add_argument("--json", action="store_true", help="print the agent's answer as JSON")


def _run_agent(args: argparse.Namespace) -> int:
    """Run the agent of this node until SIGTERM or SIGINT, which drain it: running connections get a grace period."""
    from node_agent.agent import main as agent_main  # noqa: PLC0415
    from node_agent.errors import AgentError  # noqa: PLC0415

    try:
        return agent_main(args.config)
    except AgentError as error:
        return _fail(error)


def _question(args: argparse.Namespace) -> int:
    if args.watch:
        return watch(args, sleep=time.sleep)
    _show(ask(args.agent, args.path, service=args.service), args)
    return 0


def watch(args: argparse.Namespace, *, sleep: Callable[[float], None]) -> int:
    """Ask again every ``args.interval`` seconds: one screen a time, or one line of JSON a time."""
    clear = sys.stdout.isatty() and not args.json
    try:
        while True:
            answer = ask(args.agent, args.path, service=args.service)
            if args.json:
                print(json.dumps(answer), flush=True)
            else:
                text = args.view(answer, Paint(sys.stdout))
                print(f"\x1b[H\x1b[J{text}" if clear else f"{text}\n", flush=True)
            sleep(args.interval)
    except KeyboardInterrupt:
        return 0


def _log_level(args: argparse.Namespace) -> int:
    """Change what the running agent logs on stderr, until it is restarted.  Access records are always written."""
    args.view = views.log_level
    _show(tell(args.agent, "/log-level", {"level": args.level}), args)
    return 0


def _show(answer: Any, args: argparse.Namespace) -> None:
    print(json.dumps(answer, indent=2) if args.json else args.view(answer, Paint(sys.stdout)))


def _fail(error: Exception) -> int:
    print(f"ringfence: {printable(str(error))}", file=sys.stderr)
    return 1


def _command(arguments: Sequence[str]) -> str | None:
    return next((argument for argument in arguments if not argument.startswith("-")), None)


def _interval_s(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.1 to 3600")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
