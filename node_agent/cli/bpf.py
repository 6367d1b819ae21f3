"""``ringfence bpf load|unload|status``: the kernel side, without an agent.

``load`` is the short-lived loader: it compiles with bcc, pins, and ends.  So it
runs before the agent, which only opens what is pinned.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Final

from node_agent.cli.question import add_agent_options, add_command
from node_agent.cli.table import table
from node_agent.cli.terminal import Paint, printable

_DEFAULT_PINS: Final = Path("/sys/fs/bpf/ringfence")  # bpf.pins, which costs an import of ctypes


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``bpf``."""
    parser = add_command(
        commands,
        "bpf",
        text="load, unload and show the BPF programs",
        description="load: compile, verify and pin the BPF programs, in place of an older version (needs bcc). "
        "unload: remove all of it. status: what is loaded, and which features are off, and why.",
        examples=[
            "ringfence bpf load            # before the agent, where [capture] mode needs it",
            "ringfence bpf status --json",
            "ringfence bpf unload          # the node is as it was before",
        ],
    )
    parser.add_argument("action", nargs="?", choices=("load", "unload", "status"), default="status", metavar="ACTION")
    parser.add_argument("--pins", metavar="DIR", type=Path, default=_DEFAULT_PINS, help=f"default {_DEFAULT_PINS}")
    parser.add_argument("--force", action="store_true", help="unload: also while an agent uses them")
    parser.add_argument("--verbose", action="store_true", help="load, unload: say each step")
    add_agent_options(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from bpf.errors import BpfError, VerifierRefusal  # noqa: PLC0415

    try:
        return {"load": _load, "unload": _unload, "status": _status}[args.action](args)
    except VerifierRefusal as error:
        print(error.log, file=sys.stderr)
        print(f"ringfence: {printable(str(error))}", file=sys.stderr)
    except (BpfError, OSError) as error:
        print(f"ringfence: {error}", file=sys.stderr)
    return 1


def _load(args: argparse.Namespace) -> int:
    from bpf.loader import load  # noqa: PLC0415

    done = load(args.pins, progress=_say if args.verbose else lambda _step: None)
    if args.json:
        print(
            json.dumps({"generation": done.generation, "replaced": done.replaced, "on": done.on, "off": dict(done.off)})
        )
        return 0
    what = "replaced the programs" if done.replaced else "loaded the programs"
    print(f"{what} in {args.pins}, generation {done.generation}: {', '.join(done.on) or 'no feature'}")
    for name, reason in done.off.items():
        print(f"off: {name}: {reason}")
    return 0


def _unload(args: argparse.Namespace) -> int:
    from bpf.unloader import unload  # noqa: PLC0415

    existed = unload(args.pins, force=args.force, progress=_say if args.verbose else lambda _step: None)
    if args.json:
        print(json.dumps({"unloaded": existed}))
    else:
        print(f"unloaded {args.pins}" if existed else f"nothing was loaded in {args.pins}")
    return 0


def _status(args: argparse.Namespace) -> int:
    from bpf.status import collect  # noqa: PLC0415

    found = collect(args.pins)
    print(json.dumps(found, indent=2) if args.json else view(found, Paint(sys.stdout)))
    return 0 if found["loaded"] and not found["problem"] else 1


def _say(step: str) -> None:
    print(f"ringfence: {step}", file=sys.stderr, flush=True)


def view(found: dict[str, Any], paint: Paint) -> str:
    """What ``status`` shows to people."""
    if not found["loaded"]:
        return f"{paint('not loaded', 'red')}: {printable(str(found['problem']))}"
    head = f"{found['pins']}: generation {found['generation']}, {'used by an agent' if found['in_use'] else 'no agent'}"
    parts = [head]
    if found["problem"]:
        parts.append(paint(printable(str(found["problem"])), "yellow"))
    parts += [
        f"{each['name']}: {paint('on', 'green')}"
        if each["on"]
        else f"{each['name']}: {paint('off', 'yellow')}, {printable(str(each['reason']))}"
        for each in found["features"]
    ]
    parts.append(
        table(
            ["MAP", ">ENTRIES", ">MOST"],
            [[each["name"], _used(each["entries"]), str(each["max_entries"])] for each in found["maps"]],
            paint,
        )
    )
    workloads: dict[str, list[str]] = {}
    for each in found["links"]:
        hook = each["hook"] if each["cgroup_id"] else f"{each['hook']} (its cgroup is gone)"
        workloads.setdefault(each["workload"], []).append(hook)
    if workloads:
        rows = [[name, ", ".join(hooks)] for name, hooks in workloads.items()]
        parts.append(table(["ATTACHED TO", "~HOOKS"], rows, paint))
    return "\n".join(parts)


def _used(entries: int | None) -> str:
    return "-" if entries is None else str(entries)
