"""``ringfence endpoints``: the endpoints of the services."""

import argparse
from collections.abc import Sequence

from node_agent.cli.names import completes, service_names
from node_agent.cli.question import add_question
from node_agent.cli.rows import Row, milliseconds, rows_table, text
from node_agent.cli.selection import add_namespace_option, in_namespace
from node_agent.cli.table import Cell
from node_agent.cli.terminal import Paint


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``endpoints``."""
    parser = add_question(
        commands,
        "endpoints",
        view=view,
        select=_select,
        text="the endpoints of the services",
        examples=[
            "ringfence endpoints shop/web       # those of one service",
            "ringfence endpoints --unhealthy    # those that get no connections, and why",
        ],
    )
    service = parser.add_argument(
        "service", metavar="SERVICE", nargs="?", help="[NAMESPACE/]SERVICE: only this one (namespace `default`)"
    )
    completes(service, service_names)
    add_namespace_option(parser)
    parser.add_argument("--unhealthy", action="store_true", help="only those that are not ready, or not healthy")


def _select(rows: Sequence[Row], args: argparse.Namespace) -> list[Row]:
    return [
        row
        for row in rows
        if (args.namespace is None or in_namespace(row.get("service"), args.namespace))
        and not (args.unhealthy and row.get("ready") and row.get("health") == "healthy")
    ]


def view(rows: Sequence[Row], paint: Paint) -> str:
    """The endpoints of the services, as the balancer sees them."""
    return rows_table(
        rows,
        paint,
        ("SERVICE", lambda r: f"{text(r.get('service'))}:{text(r.get('port'))}"),
        ("ADDRESS", lambda r: text(r.get("address"))),
        ("~WORKLOAD", lambda r: f"via {text(r['egress'])}" if r.get("egress") else text(r.get("workload"))),
        ("READY", lambda r: ("yes", "green") if r.get("ready") else ("no", "red")),
        ("~HEALTH", _health),
        (">~~WEIGHT", lambda r: f"{r.get('weight', 1):g}"),
        (">OPEN", lambda r: text(r.get("open_connections"))),
        (">LATENCY", lambda r: milliseconds(r.get("latency_ms"))),
        ("~~~IDENTITY", lambda r: text(r.get("identity"))),
    )


def _health(row: Row) -> Cell:
    """How the endpoint is, and why not better."""
    shown, why, left_s = text(row.get("health")), row.get("why"), row.get("ejected_for_s")
    if why:
        shown += f" ({text(why)}" + (f", {left_s:.0f} s left)" if left_s else ")")
    return shown, "green" if row.get("health") == "healthy" else "red"
