"""``ringfence ca status``: what there is, and what is due next, at a glance."""

import argparse
import json
import sys
from datetime import UTC, datetime
from typing import Any

from ca.authority.status import describe
from node_agent.cli.ca.command import Commands, add_command, opened
from node_agent.cli.table import Cell, table
from node_agent.cli.terminal import Paint, duration, printable


def add_commands(commands: Commands) -> None:
    """Add the commands of this file to ``ringfence ca``."""
    text = "show keys, ages, agents, revocations, federated domains, and what is due next"
    status = add_command(commands, "status", _status, text)
    status.add_argument("--json", action="store_true", help="for programs")


def _status(arguments: argparse.Namespace) -> int:
    with opened(arguments) as (config, store):
        found = describe(config, store, at=datetime.now(UTC))
    print(json.dumps(found, indent=2) if arguments.json else render(found, Paint(sys.stdout)))
    return 0


def render(found: dict[str, Any], paint: Paint) -> str:
    """The whole status as tables; empty ones are left out."""
    issued = found["certificates_issued"]
    sections = [
        f"authority of {found['trust_domain']}; SVIDs live {duration(found['svid_ttl_s'])}; "
        f"{issued} certificate{'' if issued == 1 else 's'} issued; trust version {found['trust_version']}",
        _keys(found, paint),
        _jwt_keys(found, paint),
        _agents(found, paint),
        _revocations(found, paint),
        _federation(found, paint),
        _tokens(found, paint),
        due_table(found["due"], paint),
    ]
    return "\n\n".join(section for section in sections if section)


def due_table(due: list[dict[str, Any]], paint: Paint) -> str:
    """What is due, and the commands for what needs an operator now."""
    rows: list[list[Cell]] = []
    for each in due:
        when = f"{duration(-each['in_s'])} ago" if each["overdue"] else f"in {duration(each['in_s'])}"
        colour = "red" if each["overdue"] and each["needs_operator"] else ""
        rows.append([each["what"], (when, colour), _at(each["at"]), "you" if each["needs_operator"] else ""])
    lines = [table(["DUE", "WHEN", "AT (UTC)", "WHO"], rows, paint)] if rows else []
    now = [each for each in due if each["needs_operator"] and each["overdue"]]
    for each in now:
        lines.append(paint(f"to {each['what']}:", "yellow"))
        lines += [f"  {command}" for command in each["commands"]]
    return "\n".join(lines)


def _keys(found: dict[str, Any], paint: Paint) -> str:
    colours = {"active": "green", "retiring": "yellow"}
    rows: list[list[Cell]] = [
        [
            each["kind"],
            (each["state"], colours.get(each["state"], "")),
            each["key_id"][:16],
            duration(each["age_s"]),
            _at(each["not_after"]),
            _where(each),
        ]
        for each in found["authorities"]
        if each["state"] != "retired"
    ]
    retired = sum(each["state"] == "retired" for each in found["authorities"])
    lines = [table(["KEY", "STATE", "ID", "AGE", "ENDS (UTC)", "PRIVATE HALF"], rows, paint)]
    return "\n".join([*lines, f"and {retired} retired"] if retired else lines)


def _where(key: dict[str, Any]) -> Cell:
    """A root's key may be offline, or be somebody else's; what is to sign SVIDs has to be here."""
    if key["key_here"]:
        return "here"
    signs = key["kind"] == "intermediate" and key["state"] in ("active", "prepared")
    return ("missing", "red") if signs else "elsewhere"


def _jwt_keys(found: dict[str, Any], paint: Paint) -> str:
    rows: list[list[Cell]] = [[each["state"], each["key_id"][:16], _at(each["since"])] for each in found["jwt_keys"]]
    return table(["KEY FOR JWT-SVIDS", "ID", "SINCE (UTC)"], rows, paint) if rows else ""


def _agents(found: dict[str, Any], paint: Paint) -> str:
    rows: list[list[Cell]] = []
    for each in found["agents"]:
        if each["shut_out"]:
            condition: Cell = ("revoked", "red")
        elif not each["live"]:
            condition = ("no certificate", "yellow")
        else:
            condition = ("up to date", "green") if each["acknowledged"] else ("behind", "yellow")
        seen = "never" if each["seen_s"] is None else f"{duration(each['seen_s'])} ago"
        ends = "-" if each["certificate_ends_at"] is None else _at(each["certificate_ends_at"])
        rows.append([each["node"], condition, str(each["version"]), seen, ends, each["address"] or "-"])
    headers = ["AGENT", "TRUST", ">VERSION", "SEEN", "CERTIFICATE ENDS (UTC)", "ADDRESS"]
    return table(headers, rows, paint) if rows else ""


def _revocations(found: dict[str, Any], paint: Paint) -> str:
    rows: list[list[Cell]] = [
        [
            f"{each['kind']} {each['value']}",
            _at(each["at"]),
            # A node is shut out until somebody lets it in, whenever its certificates have ended.
            "undone" if each["until"] is None or each["kind"] == "node" else _at(each["until"]),
            str(each["certificates"]),
            each["why"] or "-",
        ]
        for each in found["revocations"]
    ]
    headers = ["REVOKED", "SINCE (UTC)", "UNTIL (UTC)", ">CERTIFICATES", "WHY"]
    return table(headers, rows, paint) if rows else ""


def _federation(found: dict[str, Any], paint: Paint) -> str:
    rows: list[list[Cell]] = [
        [
            each["trust_domain"],
            ("ok", "green") if each["problem"] is None else (printable(each["problem"]), "red"),
            "-" if each["sequence"] is None else str(each["sequence"]),
            str(each["roots"]),
            "never" if each["polled_at"] is None else _at(each["polled_at"]),
        ]
        for each in found["federation"]
    ]
    return table(["FEDERATED", "STATE", ">SEQUENCE", ">ROOTS", "ASKED (UTC)"], rows, paint) if rows else ""


def _tokens(found: dict[str, Any], paint: Paint) -> str:
    rows: list[list[Cell]] = [[each["node"], _at(each["expires_at"])] for each in found["tokens_pending"]]
    return table(["JOIN TOKEN FOR", "EXPIRES (UTC)"], rows, paint) if rows else ""


def _at(text: str) -> str:
    return text[:19].replace("T", " ")
