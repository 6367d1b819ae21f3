"""``ringfence certs``: the certificates it holds, and until when."""

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from node_agent.cli.question import add_question
from node_agent.cli.rows import Row, rows_table, state, text
from node_agent.cli.table import Cell
from node_agent.cli.terminal import Paint, duration

_SOON: Final = "15m"
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``certs``."""
    parser = add_question(
        commands,
        "certs",
        view=view,
        select=_select,
        text="the certificates the agent holds, and until when",
        examples=[
            "ringfence certs --expiring        # those that end within 15 minutes, or are not valid",
            "ringfence certs --expiring 2h --json",
        ],
    )
    parser.add_argument(
        "--expiring",
        metavar="WITHIN",
        type=_duration,
        nargs="?",
        const=_duration(_SOON),
        help=f"only those that end within this time, such as 90s, 15m, 2h, 1d (default {_SOON}), or that are not valid",
    )


def _duration(written: str) -> timedelta:
    number, unit = written[:-1], written[-1:]
    if unit not in _UNITS_S or not number.isascii() or not number.isdigit() or len(number) > 6:
        raise argparse.ArgumentTypeError(f"{written!r} is not a time such as 90s, 15m, 2h or 1d")
    return timedelta(seconds=int(number) * _UNITS_S[unit])


def _select(rows: Sequence[Row], args: argparse.Namespace) -> list[Row]:
    if args.expiring is None:
        return list(rows)
    limit_s = args.expiring.total_seconds()
    at = datetime.now(UTC)
    return [
        row for row in rows if row.get("state") != "valid" or (left_s := _left_s(row, at)) is None or left_s <= limit_s
    ]


def _left_s(row: Row, at: datetime) -> float | None:
    """Seconds until it ends; None when there is no certificate."""
    try:
        return (datetime.fromisoformat(str(row.get("not_after"))) - at).total_seconds()
    except (ValueError, TypeError):
        return None


def view(rows: Sequence[Row], paint: Paint) -> str:
    """The certificates that the agent holds."""
    return _view(rows, paint, datetime.now(UTC))


def _view(rows: Sequence[Row], paint: Paint, at: datetime) -> str:
    def left(row: Row) -> Cell:
        left_s = _left_s(row, at)
        if left_s is None:
            return "-"
        return ("ended", "red") if left_s <= 0 else duration(left_s)

    return rows_table(
        rows,
        paint,
        ("~IDENTITY", lambda r: text(r.get("identity"))),
        ("~~~SERIAL", lambda r: text(r.get("serial"))),
        ("~~NOT BEFORE", lambda r: text(r.get("not_before"))),
        ("~~NOT AFTER", lambda r: text(r.get("not_after"))),
        (">LEFT", left),
        ("STATE", lambda r: state(r.get("state"))),
        ("~LAST ERROR", lambda r: text(r.get("last_error"))),
    )
