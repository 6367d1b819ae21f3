"""``ringfence agent``: run the agent of this node."""

import argparse
import sys
from pathlib import Path
from typing import Final

from node_agent.cli.question import add_command
from node_agent.cli.terminal import printable

_CONFIG: Final = "/etc/ringfence/agent.toml"


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``agent``."""
    parser = add_command(
        commands,
        "agent",
        text="run the agent of this node",
        description="Runs the agent of this node until SIGTERM or SIGINT, which drain it: "
        "running connections get a grace period.",
        examples=["ringfence agent --config /etc/ringfence/agent.toml"],
    )
    parser.add_argument("--config", metavar="FILE", type=Path, default=Path(_CONFIG), help=f"default {_CONFIG}")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from node_agent.agent import main as agent_main  # noqa: PLC0415  (no other command loads the agent)
    from node_agent.errors import AgentError  # noqa: PLC0415

    try:
        return agent_main(args.config)
    except AgentError as error:
        print(f"ringfence: {printable(str(error))}", file=sys.stderr)
        return 1
