"""The commands of scripts/lab."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from labkit import (
    argument_types,
    capture,
    cluster,
    execution,
    faults,
    federation,
    layout,
    manifests,
    operator_command,
    pods,
    processes,
    removal,
    state,
    status,
    waiting,
)
from labkit.errors import CommandError, LabError


def main(arguments: Sequence[str]) -> int:
    """Run one command: its exit code."""
    if str(layout.ROOT) not in sys.path:
        sys.path.append(str(layout.ROOT))
    parsed = _parser().parse_args(arguments)
    try:
        if os.geteuid() != 0:
            raise LabError("the lab makes network namespaces: run it as root")
        parsed.run(parsed)
    except LabError as exc:
        print(f"lab: {exc}", file=sys.stderr)
        return exc.exit_code
    except KeyboardInterrupt:
        print("lab: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    return 0


def _up(arguments: argparse.Namespace) -> None:
    begin = time.monotonic()
    with state.locked("up"):
        lab = cluster.up(
            nodes=arguments.nodes,
            capture=arguments.capture,
            with_agents=not arguments.no_agents,
            workers=arguments.workers,
            domains=dict(arguments.trust_domain_of),
            ca_replicas=arguments.ca_replicas,
        )
    cas = "a CA" if len(lab.trust_domains) == 1 else f"{len(lab.trust_domains)} CAs"
    cas += f" of {lab.ca_replicas} replicas" if lab.ca_replicas > 1 else ""
    what = f"{cas}, an agent on each" if lab.agents else "no CA and no agents"
    print(f"lab: up in {time.monotonic() - begin:.1f} s: {lab.nodes} nodes, {what}; `scripts/lab status` shows it")


def _federate(_arguments: argparse.Namespace) -> None:
    with state.locked("federate"):
        lines = federation.federate(state.load())
    print("\n".join(lines))


def _down(_arguments: argparse.Namespace) -> None:
    with state.locked("down"):
        existed = cluster.down()
    print("lab: down" if existed else "lab: there was none")


def _pod(arguments: argparse.Namespace) -> None:
    wanted = pods.Wanted(
        name=arguments.name,
        namespace=arguments.namespace,
        node=arguments.node,
        service_account=arguments.service_account,
        labels=dict(arguments.label),
        ports=arguments.port,
        mesh=not arguments.no_mesh,
    )
    with state.locked(f"pod {arguments.name}"):
        lab = state.load()
        pod = pods.add(lab, wanted)
        described = pods.describe(pod)
    running = processes.agent(pod.node).pid() is not None
    if lab.agents:
        pods.say_if_agent_is_down(pod.node, running)
    if not arguments.no_wait:
        deadline = time.monotonic() + arguments.timeout
        try:
            if running and described["identity"] is not None:
                waiting.until_served(lab, namespace=pod.namespace, name=pod.name, node=pod.node, deadline=deadline)
            waiting.until_loaded(lab, deadline=deadline)
        except LabError as exc:
            raise LabError(f"pod {pod} is there, but {exc}") from exc
    print(json.dumps(described))


def _pods(arguments: argparse.Namespace) -> None:
    state.load()
    found = [pods.describe(pod) for pod in pods.all_pods()]
    sys.stdout.write(json.dumps(found, indent=1) + "\n" if arguments.json else status.pods_table(found))


def _exec(arguments: argparse.Namespace) -> NoReturn:
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command:
        raise CommandError("no command: scripts/lab exec POD -- COMMAND...")
    try:
        lab = state.load()
    except LabError as exc:
        raise CommandError(str(exc)) from exc
    execution.run(lab, arguments.pod, command)


def _apply(arguments: argparse.Namespace) -> None:
    origin = "standard input" if arguments.file == "-" else arguments.file
    try:
        raw = sys.stdin.buffer.read() if arguments.file == "-" else Path(arguments.file).read_bytes()
        text = raw.decode("utf-8")
    except OSError as exc:
        raise LabError(f"{origin}: can not be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise LabError(f"{origin}: is not UTF-8 text (byte {exc.start})") from exc
    with state.locked(f"apply {origin}"):
        lab = state.load()
        lines, skipped = manifests.apply(text, origin=origin)
        pods.sync(lab)
    for each in skipped:
        print(f"lab: not used: {each}", file=sys.stderr)
    waiting.until_loaded(lab)
    print("\n".join(lines))


def _delete(arguments: argparse.Namespace) -> None:
    with state.locked(f"delete {' '.join(arguments.objects)}"):
        lab = state.load()
        lines = [line for each in arguments.objects for line in removal.delete(lab, each)]
    waiting.until_loaded(lab)
    print("\n".join(lines))


def _stop(arguments: argparse.Namespace) -> None:
    _ended(arguments, processes.stop)


def _kill(arguments: argparse.Namespace) -> None:
    _ended(arguments, processes.kill)


def _ended(arguments: argparse.Namespace, end: Callable[[processes.Process], int | None]) -> None:
    with state.locked(f"{arguments.verb} {arguments.process}"):
        process = processes.named(state.load(), arguments.process)
        code = end(process)
    print(f"{process.name} ended with exit code {'unknown' if code is None else code}")


def _start(arguments: argparse.Namespace) -> None:
    with state.locked(f"start {arguments.process}"):
        lab = state.load()
        process = processes.named(lab, arguments.process)
        (processes.begin if arguments.no_wait else processes.start)(lab, process)
    print(f"{process.name} runs with pid {process.pid()}")


def _restart(arguments: argparse.Namespace) -> None:
    with state.locked(f"restart {arguments.process}"):
        lab = state.load()
        process = processes.named(lab, arguments.process)
        if process.pid() is not None:
            code = processes.stop(process)
            print(f"{process.name} ended with exit code {'unknown' if code is None else code}")
        (processes.begin if arguments.no_wait else processes.start)(lab, process)
    print(f"{process.name} runs with pid {process.pid()}")


def _cut(arguments: argparse.Namespace) -> None:
    with state.locked("cut"):
        changed = faults.cut(state.load(), arguments.one, arguments.other)
    print(f"{'cut' if changed else 'was cut already'}: node {arguments.one} and node {arguments.other}")


def _heal(arguments: argparse.Namespace) -> None:
    with state.locked("heal"):
        changed = faults.heal(state.load(), arguments.one, arguments.other)
    print(f"{'healed' if changed else 'was not cut'}: node {arguments.one} and node {arguments.other}")


def _tap(arguments: argparse.Namespace) -> None:
    state.load()
    capture.tap(Path(arguments.file), seconds=arguments.seconds)


def _logs(arguments: argparse.Namespace) -> NoReturn:
    process = processes.named(state.load(), arguments.process)
    if not process.log.exists():
        raise LabError(f"{process.name} has not run yet: it has no log")
    if arguments.follow:
        execution.become(["tail", "-n", "+1", "-F", str(process.log)])
    execution.become(["cat", str(process.log)])


def _status(arguments: argparse.Namespace) -> None:
    found = status.collect(state.load())
    sys.stdout.write(json.dumps(found, indent=1) + "\n" if arguments.json else status.table(found))


def _ringfence(arguments: argparse.Namespace) -> NoReturn:
    operator_command.run(state.load(), arguments.target, arguments.arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/lab", description="A small cluster in network namespaces on this machine. See docs/lab.md."
    )
    commands = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], Any], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    _add_up_options(command("up", _up, "make the lab: nodes, a link, a CA, an agent on each node; an earlier lab goes"))
    command("federate", _federate, "let the lab's trust domains believe each other")
    command("down", _down, "remove the lab, whatever state it is in")

    pod = command("pod", _pod, "add a pod; prints it as JSON once its agent serves it")
    pod.add_argument("name", metavar="NAME")
    pod.add_argument("--node", type=argument_types.node_number, required=True, metavar="K")
    pod.add_argument("--namespace", default="default")
    pod.add_argument("--service-account", default="default", metavar="NAME")
    pod.add_argument(
        "--label", type=argument_types.label, action="append", default=[], metavar="KEY=VALUE", help="repeatable"
    )
    pod.add_argument(
        "--port", type=argument_types.port, action="append", default=[], metavar="N", help="container port; repeatable"
    )
    pod.add_argument("--no-mesh", action="store_true", help="do not enrol it in the mesh")
    pod.add_argument(
        "--timeout", type=argument_types.seconds, default=waiting.TIMEOUT_S, metavar="S", help="for its agent (60)"
    )
    pod.add_argument("--no-wait", action="store_true", help="do not wait until its agent serves it")
    listed = command("pods", _pods, "list the pods")
    listed.add_argument("--json", action="store_true")

    execute = command("exec", _exec, "run a command in a pod (or in a node: node-K)")
    execute.add_argument("pod", metavar="POD", help="NAME or NAMESPACE/NAME")
    execute.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD...")

    apply = command("apply", _apply, "apply manifests, as kubectl would")
    apply.add_argument("file", metavar="FILE|-")
    delete = command("delete", _delete, "delete an object, as kubectl would")
    delete.add_argument("objects", metavar="KIND/NAMESPACE/NAME", nargs="+", help="KIND/NAME for nodes and namespaces")

    for name, run, text in (
        ("stop", _stop, "SIGTERM, wait for the end"),
        ("kill", _kill, "SIGKILL"),
        ("start", _start, "start it, wait until it is ready"),
        ("restart", _restart, "stop and start"),
    ):
        process = command(name, run, text)
        process.add_argument("process", metavar="ca|ca-replica-N|agent-K")
        if name in ("start", "restart"):
            process.add_argument("--no-wait", action="store_true", help="do not wait until it is ready")
    for name, run, text in (
        ("cut", _cut, "drop everything between two nodes (the CA is node 0)"),
        ("heal", _heal, "undo cut"),
    ):
        ends = command(name, run, text)
        ends.add_argument("one", type=argument_types.node_number, metavar="K")
        ends.add_argument("other", type=argument_types.node_number, metavar="L")

    tap = command("tap", _tap, "record the link between the nodes; prints 'recording' once it does")
    tap.add_argument("file", metavar="FILE.pcap")
    tap.add_argument("--seconds", type=argument_types.seconds, required=True, metavar="S")
    logs = command("logs", _logs, "print the log of a process")
    logs.add_argument("process", metavar="ca|agent-K")
    logs.add_argument("--follow", "-f", action="store_true", help="go on until interrupted")
    shown = command("status", _status, "show what there is")
    shown.add_argument("--json", action="store_true")
    operator = command("ringfence", _ringfence, "run the ringfence command against agent K or the CA")
    operator.add_argument("target", metavar="K|ca")
    operator.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...")
    return parser


def _add_up_options(up: argparse.ArgumentParser) -> None:
    up.add_argument("--nodes", type=int, default=2, metavar="N", help="how many nodes (2)")
    up.add_argument("--capture", choices=layout.CAPTURES, default="inpod", help="how agents capture (inpod)")
    up.add_argument("--workers", type=int, default=1, metavar="N", help="worker processes of each agent (1)")
    up.add_argument(
        "--ca-replicas", type=int, default=1, metavar="N", help="processes of the CA, on one PostgreSQL if several (1)"
    )
    up.add_argument("--no-agents", action="store_true", help="only the network: no CA, no agents")
    up.add_argument(
        "--trust-domain-of",
        type=argument_types.trust_domain_of,
        action="append",
        default=[],
        metavar="K=NAME",
        help="node K is of another trust domain, which has a CA of its own (ca-2, ...); repeatable",
    )
