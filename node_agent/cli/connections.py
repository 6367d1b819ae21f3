"""``ringfence connections``: the live connections."""

import argparse
from collections.abc import Callable, Sequence
from typing import Final

from node_agent.cli.ended import ended_view, select_ended
from node_agent.cli.names import close_reasons, completes, service_names, workload_names
from node_agent.cli.question import add_question
from node_agent.cli.rows import Row, rows_table, state, text
from node_agent.cli.selection import add_namespace_option, between, with_values
from node_agent.cli.table import Cell
from node_agent.cli.terminal import Paint, duration, printable, size
from node_agent.cli.watch import add_watch_options, run_or_watch
from node_agent.errors import CloseReason

_SORT: Final = {"age": "age_s", "sent": "sent_bytes", "received": "received_bytes"}


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``connections``."""
    parser = add_question(
        commands,
        "connections",
        view=view,
        select=_select,
        text="the live connections",
        examples=[
            "ringfence connections --watch                       # again and again",
            "ringfence connections --service shop/web            # to one service",
            "ringfence connections -n shop --sort sent --limit 10",
            "ringfence connections --ended --reason policy_denied",
            "ringfence connections --state opening               # those that wait for something",
        ],
    )
    add_namespace_option(parser, "only from or to this namespace")
    service = parser.add_argument(
        "--service", dest="of_service", metavar="[NAMESPACE/]SERVICE[:PORT]", help="only to this one"
    )
    completes(service, service_names)
    completes(parser.add_argument("--source", metavar="[NAMESPACE/]POD", help="only from this one"), workload_names)
    parser.add_argument("--direction", choices=("outbound", "inbound"), help="only these")
    parser.add_argument("--state", choices=("opening", "open", "closing"), help="only these")
    parser.add_argument("--ended", action="store_true", help="instead those that ended last, the newest first, and why")
    why = "those that ended so, such as policy_denied; means --ended"
    completes(parser.add_argument("--reason", metavar="REASON", type=_close_reason, help=why), close_reasons)
    parser.add_argument("--sort", choices=tuple(_SORT), help="the most first; default age")
    parser.add_argument("--limit", metavar="N", type=_at_least_one, help="only the first N")
    add_watch_options(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.ended or args.reason is not None:
        args.path, args.view, args.select = "/recent", ended_view, select_ended
    return run_or_watch(args)


def _close_reason(text: str) -> str:
    """One of the closed set: none of a reason that does not exist would look as if all were well."""
    if text in list(CloseReason):
        return text
    import difflib  # noqa: PLC0415  (only for who mistypes)

    near = difflib.get_close_matches(text, CloseReason, n=1)
    remedy = f"did you mean {near[0]}?" if near else f"there are: {', '.join(CloseReason)}"
    raise argparse.ArgumentTypeError(f"{printable(text)!r} is no close reason; {remedy}")


def _at_least_one(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def _select(rows: Sequence[Row], args: argparse.Namespace) -> list[Row]:
    those = with_values(rows, direction=args.direction, state=args.state)
    kept = between(those, args, source="source", ends=("source", "service"))
    if args.sort or not args.json:  # JSON is as the agent answers it unless something else is asked for
        kept.sort(key=lambda row: -(row.get(_SORT[args.sort or "age"]) or 0))
    return kept[: args.limit]


def view(rows: Sequence[Row], paint: Paint) -> str:
    """The live connections; with the worker process that holds each, if there are any."""
    worker: list[tuple[str, Callable[[Row], Cell]]] = []
    if any(row.get("worker") is not None for row in rows):
        worker.append((">~~~~WORKER", lambda r: text(r.get("worker"))))
    return rows_table(
        rows,
        paint,
        *worker,
        ("~~~ID", lambda r: text(r.get("id"))),
        ("~~DIRECTION", lambda r: text(r.get("direction"))),
        ("~SOURCE", lambda r: text(r.get("source"))),
        ("~~DESTINATION", lambda r: text(r.get("original_destination"))),
        ("~SERVICE", lambda r: text(r.get("service"))),
        ("~~~ENDPOINT", lambda r: text(r.get("endpoint"))),
        (">AGE", lambda r: duration(r.get("age_s"))),
        (">RECEIVED", lambda r: size(r.get("received_bytes"))),
        (">SENT", lambda r: size(r.get("sent_bytes"))),
        ("STATE", lambda r: state(r.get("state"))),
    )
