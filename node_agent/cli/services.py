"""``ringfence services``: the services it knows, and how many endpoints are ready."""

import argparse
from collections.abc import Sequence

from node_agent.cli.question import add_question
from node_agent.cli.rows import Column, Row, rows_table, text
from node_agent.cli.selection import add_namespace_option, with_values
from node_agent.cli.table import Cell
from node_agent.cli.terminal import Paint


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``services``."""
    parser = add_question(
        commands,
        "services",
        view=view,
        select=_select,
        text="the services the agent knows, and how many endpoints are ready",
        examples=[
            "ringfence services -n shop        # those of one namespace",
            "ringfence services --not-ready    # those with an endpoint that is not ready, or with none",
        ],
    )
    add_namespace_option(parser)
    parser.add_argument("--not-ready", action="store_true", help="only where an endpoint is not ready, or none is")


def _select(rows: Sequence[Row], args: argparse.Namespace) -> list[Row]:
    kept = with_values(rows, namespace=args.namespace)
    return [row for row in kept if not args.not_ready or not row.get("ready") or row["ready"] != row.get("endpoints")]


def view(rows: Sequence[Row], paint: Paint) -> str:
    """Every service and how many of its endpoints are ready."""

    def ready(row: Row) -> Cell:
        count, total = row.get("ready"), row.get("endpoints")
        return f"{text(count)}/{text(total)}", "red" if not count else "green" if count == total else "yellow"

    egress: list[Column] = []
    if any(row.get("egress_nodes") for row in rows):
        egress.append(("~~EGRESS", lambda r: ",".join(map(text, r.get("egress_nodes") or ())) or "-"))
    return rows_table(
        rows,
        paint,
        ("NAMESPACE", lambda r: text(r.get("namespace"))),
        ("NAME", lambda r: text(r.get("name"))),
        ("~~ADDRESSES", lambda r: ",".join(map(str, (*(r.get("cluster_ips") or ()), *(r.get("hosts") or ())))) or "-"),
        ("~PORTS", lambda r: ",".join(_port(p) for p in r.get("ports") or ()) or "-"),
        ("~~~BALANCING", _balancing),
        *egress,
        (">READY", ready),
    )


def _balancing(row: Row) -> str:
    at_connect = any(each.get("at_connect") for each in row.get("ports") or ())
    return f"{text(row.get('load_balancing'))}{', at connect' if at_connect else ''}"


def _port(port: Row) -> str:
    return f"{port['name']}:{port.get('port')}" if port.get("name") else str(port.get("port"))
