"""``ringfence top``: who talks how much, and what goes wrong, as it happens.

    rates.py      two answers of the agent make rates (pure)
    state.py      what keys do: sorting, filter, pause, scrolling (pure)
    once.py       one table or one line of JSON, for scripts
    screen.py     what is on the screen (rich)
    terminal.py   the loop: keys, size, time

rich is imported by ``screen`` and ``terminal`` only, when the view is live.
"""

import argparse
import os
import sys

from node_agent.cli.names import completes, service_names
from node_agent.cli.question import add_agent_options, add_command
from node_agent.cli.selection import add_namespace_option
from node_agent.cli.top.state import SORTS, State
from node_agent.cli.watch import interval_s

_DESCRIPTION = """\
Shows the services that connections of this node go to and come for, as they change: new connections a second, open
ones, bytes a second to the service and back, connections a second that ended badly and why, the time to connect.
`out` are connections of this node's pods, `in` those that reach them.  Keys: ? or h in the view shows them."""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``top``."""
    parser = add_command(
        commands,
        "top",
        text="a live view of the services: rates, errors, latency",
        description=_DESCRIPTION,
        examples=[
            "ringfence top --sort errors",
            "ringfence top --once -n shop         # one table, of one interval, for a script",
            "ringfence top --json --interval 10   # a line of JSON every 10 seconds",
        ],
    )
    parser.add_argument(
        "--interval",
        metavar="SECONDS",
        type=interval_s,
        default=2.0,
        help="how often, and what rates are of; default 2",
    )
    parser.add_argument("--sort", choices=tuple(SORTS), default="connections", help="default connections")
    parser.add_argument("--direction", choices=("out", "in"), help="only these")
    service = parser.add_argument(
        "--service", dest="filter", metavar="TEXT", help="only services with this in the name"
    )
    completes(service, service_names)
    add_namespace_option(parser)
    parser.add_argument("--once", action="store_true", help="print the rates of one interval, and end")
    add_agent_options(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    state = State(
        sort=args.sort,
        direction=args.direction,
        filter=args.filter or "",
        namespace=args.namespace,
        interval_s=args.interval,
    )
    if args.once or args.json:
        from node_agent.cli.top.once import run_once  # noqa: PLC0415

        return run_once(args.agent, state, as_json=args.json, once=args.once)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        print("ringfence: top needs a terminal; in a script use --once or --json", file=sys.stderr)
        return 1
    if os.environ.get("TERM", "dumb") in {"dumb", "unknown", ""}:
        print("ringfence: top needs a terminal that can be written to anywhere (TERM); use --once", file=sys.stderr)
        return 1
    from node_agent.cli.top.terminal import run_live  # noqa: PLC0415  (loads rich)

    return run_live(args.agent, state)
