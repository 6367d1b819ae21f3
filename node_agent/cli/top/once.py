"""The rates without a screen: one table, or JSON, for scripts."""

import json
import sys
import time
from dataclasses import replace

from node_agent.cli.agent_socket import ask
from node_agent.cli.table import table
from node_agent.cli.terminal import Paint
from node_agent.cli.top.cells import HEADERS, cells
from node_agent.cli.top.rates import Rates, rates
from node_agent.cli.top.state import State

_MAY_BE_CUT = {"SERVICE": "~", ">OPEN": "~~", ">CONNECT": "~~", ">UP": "~~~", "WHY": "~"}


def run_once(agent: str, state: State, *, as_json: bool, once: bool) -> int:
    """Print an interval's rates, or each of them as a line of JSON until interrupted; raises AgentUnavailable."""
    before = ask(agent, "/traffic")
    while True:
        time.sleep(state.interval_s)
        after = ask(agent, "/traffic")
        found = rates(before, after)
        found = replace(found, services=tuple(state.choose(found.services)))
        if not as_json:
            print(as_table(found, Paint(sys.stdout)))
        elif once:
            print(json.dumps(found.describe(), indent=2))
        else:
            print(json.dumps(found.describe()), flush=True)
        if once or not as_json:
            return 0
        before = after


def as_table(found: Rates, paint: Paint) -> str:
    """One line a service; ``none`` without any."""
    if not found.services:
        return "none"
    headers = [f">{mark}{name[1:]}" if name[0] == ">" else mark + name for name, mark in _marked()]
    return table(headers, [cells(service) for service in found.services], paint)


def _marked() -> list[tuple[str, str]]:
    return [(name, _MAY_BE_CUT.get(name, "")) for name in HEADERS]
