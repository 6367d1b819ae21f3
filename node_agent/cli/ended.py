"""``ringfence connections --ended``: those that ended last, and why; from the access records that the agent keeps."""

import argparse
from collections.abc import Sequence

from node_agent.cli.rows import Row, rows_table, text
from node_agent.cli.selection import between, with_values
from node_agent.cli.table import Cell
from node_agent.cli.terminal import Paint, duration, size


def select_ended(rows: Sequence[Row], args: argparse.Namespace) -> list[Row]:
    """The records that are asked for; the newest come first."""
    those = with_values(rows, direction=args.direction, close_reason=args.reason)
    ends = ("source_workload", "destination_workload", "service")
    return between(those, args, source="source_workload", ends=ends)[: args.limit]


def ended_view(rows: Sequence[Row], paint: Paint) -> str:
    """A line a record."""
    return rows_table(
        rows,
        paint,
        ("TIME", lambda r: text(r.get("time")).partition("T")[2] or "-"),
        ("~~~ID", lambda r: text(r.get("id"))),
        ("~~DIRECTION", lambda r: text(r.get("direction"))),
        ("~SOURCE", lambda r: text(r.get("source_workload") or r.get("source_address"))),
        ("~DESTINATION", lambda r: text(r.get("service") or r.get("original_destination"))),
        (">~~LASTED", _lasted),
        (">~~~~RECEIVED", lambda r: size(r.get("received_bytes"))),
        (">~~~~SENT", lambda r: size(r.get("sent_bytes"))),
        ("REASON", _reason),
        ("~~DETAIL", lambda r: text(r.get("detail"))),
    )


def _lasted(row: Row) -> str:
    milliseconds = row.get("duration_ms")
    return duration(milliseconds / 1000) if isinstance(milliseconds, int | float) else "-"


def _reason(row: Row) -> Cell:
    reason = text(row.get("close_reason"))
    return reason, "" if reason == "ok" else "red"
