"""``ringfence policies``: the AuthorizationPolicies in force, whom they are about and what they did."""

import argparse
from collections.abc import Sequence

from node_agent.cli.question import add_question
from node_agent.cli.rows import Row, rows_table, text
from node_agent.cli.selection import add_namespace_option
from node_agent.cli.table import Cell
from node_agent.cli.terminal import Paint


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``policies``."""
    parser = add_question(
        commands,
        "policies",
        view=view,
        select=_select,
        text="the AuthorizationPolicies in force, whom they are about and what they did",
        examples=[
            "ringfence policies                     # all of them",
            "ringfence policies --namespace shop    # those of one namespace",
        ],
    )
    add_namespace_option(parser)


def _select(rows: Sequence[Row], args: argparse.Namespace) -> list[Row]:
    return [row for row in rows if args.namespace in (None, row.get("namespace"))]


def view(rows: Sequence[Row], paint: Paint) -> str:
    """One line a policy, and below what is wrong with some."""
    shown = rows_table(
        rows,
        paint,
        ("NAMESPACE", lambda r: text(r.get("namespace"))),
        ("NAME", lambda r: text(r.get("name"))),
        ("ACTION", _action),
        ("SCOPE", _scope),
        (">RULES", lambda r: text(r.get("rules"))),
        (">SELECTS", lambda r: text(r.get("workloads"))),
        (">HERE", lambda r: text(r.get("local_workloads"))),
        (">DENIED", lambda r: text(r.get("denials"))),
        (">~WOULD DENY", lambda r: text(r.get("dry_run_denials"))),
        (">~AUDITED", lambda r: text(r.get("audits"))),
        ("~~FILE", lambda r: text(r.get("file"))),
    )
    problems = [f"{paint('problem', 'red')}  {text(line)}" for row in rows for line in row.get("problems") or ()]
    return "\n".join([shown, *problems])


def _action(row: Row) -> Cell:
    action = text(row.get("action"))
    return (f"{action} (dry run)", "yellow") if row.get("dry_run") else action


def _scope(row: Row) -> str:
    selector = row.get("selector") or {}
    return ",".join(f"{text(key)}={text(value)}" for key, value in selector.items()) or text(row.get("scope"))
