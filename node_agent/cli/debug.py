"""``ringfence debug``: what the agent's processes are doing, for whoever looks for the reason."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from node_agent.cli.agent_socket import ask, tell
from node_agent.cli.flames import collapsed, speedscope
from node_agent.cli.question import add_agent_options, add_command, show
from node_agent.cli.rows import rows_table, text
from node_agent.cli.terminal import Paint, printable, size

_POLL_S: Final = 0.1
_LATE_S: Final = 10.0  # how much later than announced a profile may be over
_FORMATS: Final = ("collapsed", "speedscope")
_PROFILE: Final = """\
Samples the stacks of the agent's own threads, a hundred times a second, in every process of it; prints how often
each was seen.  While it runs it costs about two percent of one processor; before and after it costs nothing.
Idle threads are left out.  Values of variables are never shown.
For a flame graph give the output of collapsed to flamegraph.pl, or that of speedscope to https://speedscope.app
(it can be used offline)."""

Rows = Sequence[Mapping[str, Any]]


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``debug`` and its commands."""
    parser = add_command(
        commands,
        "debug",
        text="profile, stacks and memory of the agent's processes",
        description="Shows what the agent's processes are doing now.",
        examples=[
            "ringfence debug profile --seconds 10 > agent.collapsed",
            "ringfence debug profile --format speedscope > agent.speedscope.json",
            "ringfence debug stacks",
        ],
    )
    parts = parser.add_subparsers(title="parts", metavar="PART", required=True)

    profile = add_command(parts, "profile", text="where the time goes", description=_PROFILE)
    profile.add_argument(
        "--seconds", metavar="N", type=_seconds, default=5.0, help="for how long, 0.1 to 60; default 5"
    )
    profile.add_argument("--format", choices=_FORMATS, default="collapsed", help="default collapsed")
    profile.add_argument("--idle", action="store_true", help="with the samples of idle threads, as (idle)")
    add_agent_options(profile)
    profile.set_defaults(run=_profile)

    stacks = add_command(
        parts,
        "stacks",
        text="where each task and each thread stands",
        description="Shows the tasks as a tree, those that stand at the same places as one line, and the threads.",
    )
    add_agent_options(stacks)
    stacks.set_defaults(run=_part, path="/debug/stacks", view=_stacks_view)

    memory = add_command(
        parts, "memory", text="what the memory is used for", description="Shows sizes of each process, in total."
    )
    add_agent_options(memory)
    memory.set_defaults(run=_part, path="/debug/memory", view=_memory_view)


def _part(args: argparse.Namespace) -> int:
    show(ask(args.agent, args.path), args)
    return 0


def _profile(args: argparse.Namespace) -> int:
    processes = take_profile(args.agent, args.seconds, sleep=time.sleep)
    if args.json:
        print(json.dumps({"processes": processes}, indent=2))
    elif args.format == "speedscope":
        print(json.dumps(speedscope(processes, with_idle=args.idle)))
    else:
        for line in collapsed(processes, with_idle=args.idle):
            print(printable(line))
        seen = sum(sum(process["stacks"].values()) for process in processes)
        looks = sum(process["samples"] for process in processes)
        print(f"ringfence: {looks} looks, {seen} at something busy", file=sys.stderr)
    return 0


def take_profile(agent: str, seconds: float, *, sleep: Callable[[float], None]) -> list[Any]:
    """Profile every process of the agent, and return one row each; raises AgentUnavailable."""
    tell(agent, "/debug/profile", {"seconds": seconds})
    sleep(seconds)
    patience = int(_LATE_S / _POLL_S)
    while True:
        processes: list[Any] = ask(agent, "/debug/profile")["processes"]
        patience -= 1
        if patience < 0 or not any(process["running"] for process in processes):
            return processes
        sleep(_POLL_S)


def _stacks_view(answer: Mapping[str, Any], paint: Paint) -> str:
    lines = []
    for process in answer.get("processes") or ():
        for part in ("tasks", "threads"):
            title = f"{text(process.get('process'))} (pid {text(process.get('pid'))}): {part}"
            lines += [paint(title, "bold"), *map(printable, process.get(part) or ()), ""]
    return "\n".join(lines).rstrip()


def _memory_view(answer: Mapping[str, Any], paint: Paint) -> str:
    return rows_table(
        answer.get("processes") or (),
        paint,
        ("PROCESS", lambda r: text(r.get("process"))),
        (">PID", lambda r: text(r.get("pid"))),
        (">RESIDENT", lambda r: size(r.get("resident_bytes"))),
        (">SHARE", lambda r: size(r.get("proportional_bytes"))),
        (">~OWN", lambda r: size(r.get("private_dirty_bytes"))),
        (">~~SWAPPED", lambda r: size(r.get("swap_bytes"))),
        (">~OBJECTS", lambda r: text(r.get("allocated_blocks"))),
        (">~THREADS", lambda r: text(r.get("threads"))),
        (">FILES", lambda r: text(r.get("open_files"))),
    )


def _seconds(written: str) -> float:
    try:
        seconds = float(written)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 60.0:
        raise argparse.ArgumentTypeError(f"{written!r} is not a number of seconds from 0.1 to 60")
    return seconds
