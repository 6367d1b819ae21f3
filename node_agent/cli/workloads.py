"""``ringfence workloads``: the workloads it knows, and which of them it serves."""

import argparse
from collections.abc import Sequence

from node_agent.cli.question import add_question
from node_agent.cli.rows import Row, rows_table, state, text
from node_agent.cli.terminal import Paint


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``workloads``."""
    add_question(commands, "workloads", view=view, text="the workloads it knows, and which of them it serves")


def view(rows: Sequence[Row], paint: Paint) -> str:
    """Every workload that the agent knows; the local ones are those it serves."""
    return rows_table(
        rows,
        paint,
        ("NAMESPACE", lambda r: text(r.get("namespace"))),
        ("NAME", lambda r: text(r.get("name"))),
        ("NODE", lambda r: text(r.get("node")) + (" (here)" if r.get("local") else "")),
        ("ADDRESSES", lambda r: ",".join(map(str, r.get("addresses") or ())) or "-"),
        ("STATE", lambda r: state(r.get("state"))),
        ("IDENTITY", lambda r: text(r.get("identity"))),
        ("ERROR", lambda r: text(r.get("error"))),
    )
