"""``ringfence connections``: the live connections."""

import argparse
from collections.abc import Callable, Sequence

from node_agent.cli.question import add_question
from node_agent.cli.rows import Row, rows_table, state, text
from node_agent.cli.terminal import Cell, Paint, duration, size
from node_agent.cli.watch import add_watch_options


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``connections``."""
    parser = add_question(commands, "connections", view=view, text="the live connections")
    add_watch_options(parser)


def view(rows: Sequence[Row], paint: Paint) -> str:
    """The live connections, oldest first; with the worker process that holds each, if there are any."""
    worker: list[tuple[str, Callable[[Row], Cell]]] = []
    if any(row.get("worker") is not None for row in rows):
        worker.append((">WORKER", lambda r: text(r.get("worker"))))
    return rows_table(
        sorted(rows, key=lambda r: -(r.get("age_s") or 0)),
        paint,
        *worker,
        ("ID", lambda r: text(r.get("id"))),
        ("DIRECTION", lambda r: text(r.get("direction"))),
        ("SOURCE", lambda r: text(r.get("source"))),
        ("DESTINATION", lambda r: text(r.get("original_destination"))),
        ("SERVICE", lambda r: text(r.get("service"))),
        ("ENDPOINT", lambda r: text(r.get("endpoint"))),
        (">AGE", lambda r: duration(r.get("age_s"))),
        (">RECEIVED", lambda r: size(r.get("received_bytes"))),
        (">SENT", lambda r: size(r.get("sent_bytes"))),
        ("STATE", lambda r: state(r.get("state"))),
    )
