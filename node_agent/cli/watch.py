"""``--watch``: ask the same question again and again, until Ctrl-C."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Final

from node_agent.cli.question import answer_to, run_question
from node_agent.cli.terminal import Paint

_FAR: Final = 1_000_000


def add_watch_options(parser: argparse.ArgumentParser) -> None:
    """Let the question of ``parser`` be watched."""
    parser.add_argument("--watch", action="store_true", help="again and again, until Ctrl-C")
    parser.add_argument(
        "--interval", metavar="SECONDS", type=interval_s, default=1.0, help="how often with --watch; default 1"
    )
    parser.set_defaults(run=run_or_watch)


def run_or_watch(args: argparse.Namespace) -> int:
    """Ask once, or watch."""
    return watch(args, sleep=time.sleep) if args.watch else run_question(args)


def watch(args: argparse.Namespace, *, sleep: Callable[[float], None]) -> int:
    """Ask every ``args.interval`` seconds: one screen a time, or one line of JSON a time."""
    clear = sys.stdout.isatty() and not args.json
    try:
        while True:
            answer = answer_to(args)
            if args.json:
                print(json.dumps(answer), flush=True)
            else:
                text = args.view(answer, Paint(sys.stdout))
                print(f"\x1b[H\x1b[J{_top_of(text)}" if clear else f"{text}\n", end="\n" * (not clear), flush=True)
            sleep(args.interval)
    except KeyboardInterrupt:
        return 0


def _top_of(text: str) -> str:
    """As much of ``text`` as the terminal has lines for."""
    try:
        most = os.get_terminal_size(sys.stdout.fileno()).lines or _FAR
    except OSError:
        most = _FAR
    lines = text.split("\n")
    return text if len(lines) <= most else "\n".join([*lines[: most - 1], f"and {len(lines) - most + 1} more"])


def interval_s(text: str) -> float:
    """The type of ``--interval``; raises ArgumentTypeError."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.1 to 3600")
    return seconds
