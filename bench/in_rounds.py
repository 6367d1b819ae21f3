"""What the measures that have a process and a lab of their own do in common."""

import argparse
import json
import sys
from collections.abc import Callable

from bench.authority import end_in_order
from bench.testbed import BenchError, require_tools

Rounds = dict[str, dict[str, list[float]]]
"""Way or peer > figure > one value a round."""


def print_rounds(name: str, measure: Callable[[int, float], Rounds], *, description: str | None, rounds: int) -> None:
    """Measure as the command line says (rounds, seconds of each load) and print one object of JSON; exits."""
    end_in_order()
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each load")
    options = parser.parse_args()
    try:
        require_tools()
        found = measure(options.rounds, options.seconds)
    except BenchError as error:
        sys.exit(f"bench.{name}: {error}")
    json.dump(found, sys.stdout)
