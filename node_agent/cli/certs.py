"""``ringfence certs``: the certificates it holds, and until when."""

import argparse
from collections.abc import Sequence

from node_agent.cli.question import add_question
from node_agent.cli.rows import Row, rows_table, state, text
from node_agent.cli.terminal import Paint


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``certs``."""
    add_question(commands, "certs", view=view, text="the certificates it holds, and until when")


def view(rows: Sequence[Row], paint: Paint) -> str:
    """The certificates that the agent holds."""
    return rows_table(
        rows,
        paint,
        ("IDENTITY", lambda r: text(r.get("identity"))),
        ("SERIAL", lambda r: text(r.get("serial"))),
        ("NOT BEFORE", lambda r: text(r.get("not_before"))),
        ("NOT AFTER", lambda r: text(r.get("not_after"))),
        ("STATE", lambda r: state(r.get("state"))),
        ("LAST ERROR", lambda r: text(r.get("last_error"))),
    )
