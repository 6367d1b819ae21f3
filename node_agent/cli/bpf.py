"""``ringfence bpf load|unload|status|wait``: the kernel side.

``load`` is the short-lived loader: it compiles with bcc, pins, and ends.  So it
runs before the agent, which only opens what is pinned.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Final

from node_agent.cli.agent_address import AgentUnavailable
from node_agent.cli.agent_socket import ask
from node_agent.cli.question import add_agent_options, add_command
from node_agent.cli.table import table
from node_agent.cli.terminal import Paint, printable

_LOOK_S: Final = 0.05
_DEFAULT_PINS: Final = Path("/sys/fs/bpf/ringfence")  # bpf.pins, which costs an import of ctypes


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``bpf``."""
    parser = add_command(
        commands,
        "bpf",
        text="load, unload and show the BPF programs",
        description="load    compile, verify and pin the BPF programs, in place of an older version (needs bcc)\n"
        "unload  remove all of it\n"
        "status  what is loaded, and which features are off, and why\n"
        "wait    until the agent captures the cgroup that this command runs in, as that of a Workload",
        examples=[
            "ringfence bpf load            # before the agent, where [capture] mode needs it",
            "ringfence bpf status --json",
            "ringfence bpf unload          # the node is as it was before",
            "ExecStartPre=+ringfence bpf wait shop/web    # in a systemd unit: not before it is captured",
        ],
    )
    parser.add_argument(
        "action",
        nargs="?",
        choices=tuple(_ACTIONS),
        default="status",
        metavar="ACTION",
        help=f"{', '.join(_ACTIONS)}; default status",
    )
    parser.add_argument("workload", nargs="?", metavar="NAMESPACE/NAME", help="wait: for which Workload")
    parser.add_argument("--timeout", metavar="S", type=float, default=30.0, help="wait: at most so long (30)")
    parser.add_argument("--pins", metavar="DIR", type=Path, default=_DEFAULT_PINS, help=f"default {_DEFAULT_PINS}")
    parser.add_argument("--force", action="store_true", help="unload: also while an agent uses them")
    parser.add_argument("--verbose", action="store_true", help="load, unload: say each step")
    add_agent_options(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from bpf.errors import BpfError, VerifierRefusal  # noqa: PLC0415

    try:
        return _ACTIONS[args.action](args)
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

    say = _say if args.verbose else lambda _step: None
    existed = unload(args.pins, force=args.force, progress=say)
    if existed:
        say("remove the rules of this network namespace")
        _remove_rules()
    if args.json:
        print(json.dumps({"unloaded": existed}))
    else:
        print(f"unloaded {args.pins}" if existed else f"nothing was loaded in {args.pins}")
    return 0


def _remove_rules() -> None:
    """What an agent in mode ``cgroup`` has left in its own network namespace; raises OSError."""
    import trio  # noqa: PLC0415

    from node_agent.capture import PlumbingJob, open_home, plumb  # noqa: PLC0415

    home = open_home()
    try:
        (error,) = trio.run(plumb, [PlumbingJob(fd=home, install=False)])
    finally:
        os.close(home)
    if error is not None:
        raise OSError(f"the nftables rules could not be removed: {error}")


def _status(args: argparse.Namespace) -> int:
    from bpf.status import collect  # noqa: PLC0415

    found = collect(args.pins)
    print(json.dumps(found, indent=2) if args.json else view(found, Paint(sys.stdout)))
    return 0 if found["loaded"] and not found["problem"] else 1


def _wait(args: argparse.Namespace) -> int:
    """Until every hook is at a cgroup around us, and the agent serves the workload."""
    from bpf.status import attached  # noqa: PLC0415

    namespace, slash, name = (args.workload or "").partition("/")
    if not slash:
        print("ringfence: which Workload? write NAMESPACE/NAME, for example shop/web", file=sys.stderr)
        return 2
    limit = time.monotonic() + args.timeout
    while True:
        is_captured = attached(args.pins, namespace, name) in _own_cgroups()
        error = _not_served(args, namespace, name) if is_captured else ""
        if is_captured and not error:
            return 0
        if time.monotonic() > limit:
            error = error or _not_captured(args, namespace, name)
            print(f"ringfence: after {args.timeout:g} s {printable(error)}", file=sys.stderr)
            return 1
        time.sleep(_LOOK_S)


def _own_cgroup() -> str:
    """Below the root of cgroup v2, as a Workload names it."""
    lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    return next(line.removeprefix("0::") for line in lines if line.startswith("0::"))


def _own_cgroups() -> set[int]:
    """The numbers of the cgroup that this process is in, and of all around it."""
    from bpf.preconditions import cgroup_root  # noqa: PLC0415

    here = cgroup_root() / _own_cgroup().lstrip("/")
    return {each.stat().st_ino for each in (here, *here.parents) if each.is_relative_to(cgroup_root())}


def _not_captured(args: argparse.Namespace, namespace: str, name: str) -> str:
    why = _not_served(args, namespace, name) or (
        f"it is {_own_cgroup()}; look at `cgroup` or `systemdUnit` of the Workload, and that --pins is the agent's"
    )
    return f"the cgroup of this process is not captured as that of {args.workload}: {why}"


def _not_served(args: argparse.Namespace, namespace: str, name: str) -> str:
    try:
        rows: list[dict[str, Any]] = ask(args.agent, "/workloads")
    except AgentUnavailable as error:
        return str(error)
    for row in rows:
        if (row.get("namespace"), row.get("name")) == (namespace, name) and row.get("local"):
            return (
                "" if row.get("state") == "serving" else f"{namespace}/{name} is {row.get('state')}: {row.get('error')}"
            )
    return f"the agent knows no Workload {namespace}/{name} of this node"


def _say(step: str) -> None:
    print(f"ringfence: {step}", file=sys.stderr, flush=True)


def view(found: dict[str, Any], paint: Paint) -> str:
    """What ``status`` shows to people."""
    if not found["loaded"]:
        return paint(printable(str(found["problem"])), "red")
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
        hook = each["hook"] if each["attached"] else f"{each['hook']} (what it was attached to is gone)"
        workloads.setdefault(each["workload"], []).append(hook)
    if workloads:
        rows = [[name, ", ".join(hooks)] for name, hooks in workloads.items()]
        parts.append(table(["ATTACHED TO", "~HOOKS"], rows, paint))
    return "\n".join(parts)


def _used(entries: int | None) -> str:
    return "-" if entries is None else str(entries)


_ACTIONS: Final = {"load": _load, "unload": _unload, "status": _status, "wait": _wait}
