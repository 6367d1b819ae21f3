"""``ringfence workloads``: the workloads it knows, and which of them it serves."""

import argparse
from collections.abc import Sequence

from node_agent.cli.question import add_question
from node_agent.cli.rows import Row, rows_table, state, text
from node_agent.cli.selection import add_namespace_option, with_values
from node_agent.cli.terminal import Paint

_STATES = ("serving", "pending", "remote", "not enrolled")


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``workloads``."""
    parser = add_question(
        commands,
        "workloads",
        view=view,
        select=_select,
        text="the workloads the agent knows, and which of them it serves",
        examples=[
            "ringfence workloads --local           # those of this node",
            "ringfence workloads --state pending   # those that wait for something, and for what",
        ],
    )
    add_namespace_option(parser)
    parser.add_argument("--local", action="store_true", help="only those of this node")
    parser.add_argument("--state", choices=_STATES, metavar="STATE", help=f"only in this state: {', '.join(_STATES)}")


def _select(rows: Sequence[Row], args: argparse.Namespace) -> list[Row]:
    return with_values(rows, namespace=args.namespace, state=args.state, local=args.local or None)


def view(rows: Sequence[Row], paint: Paint) -> str:
    """Every workload that the agent knows; the local ones are those it serves."""
    return rows_table(
        rows,
        paint,
        ("NAMESPACE", lambda r: text(r.get("namespace"))),
        ("NAME", lambda r: text(r.get("name"))),
        ("~NODE", lambda r: text(r.get("node")) + (" (here)" if r.get("local") else "")),
        ("~~ADDRESSES", lambda r: ",".join(map(str, r.get("addresses") or ())) or "-"),
        ("STATE", lambda r: state(r.get("state"))),
        ("~~~IDENTITY", lambda r: text(r.get("identity"))),
        ("~ERROR", lambda r: text(r.get("error"))),
    )
