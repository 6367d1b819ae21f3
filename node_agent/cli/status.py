"""``ringfence status``: the condition of this node's agent."""

import argparse
from collections.abc import Mapping

from node_agent.cli.question import add_question
from node_agent.cli.rows import Row, text
from node_agent.cli.terminal import Paint, duration, size


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``status``."""
    add_question(commands, "status", view=view, text="the condition of this node's agent")


def view(answer: Row, paint: Paint) -> str:
    """The agent's condition: one screen, problems last, where the eye ends."""
    ready = paint("ready", "green") if answer.get("ready") else paint("not ready", "red")
    if answer.get("draining"):
        ready = paint("draining", "yellow")
    registry: Row = answer.get("registry") or {}
    objects: Mapping[str, int] = registry.get("objects") or {}
    connections: Row = answer.get("connections") or {}
    tunnels: Row = answer.get("tunnels") or {}
    ca: Row = answer.get("ca") or {}
    lines = [
        f"node          {text(answer.get('node'))}  {ready}",
        *(f"              {paint('because', 'yellow')} {text(reason)}" for reason in answer.get("reasons") or ()),
        *(f"              {paint('warning', 'yellow')} {text(line)}" for line in answer.get("warnings") or ()),
        f"trust domain  {text(answer.get('trust_domain'))}" + _federated(answer),
        f"agent         version {text(answer.get('version'))}, pid {text(answer.get('pid'))}, "
        f"up {duration(answer.get('uptime_s'))}",
        f"registry      {text(registry.get('source'))}, revision {text(registry.get('revision'))}, "
        f"digest {text(registry.get('digest'))[:12]}",
        f"              {', '.join(f'{count} {text(kind)}' for kind, count in objects.items()) or 'empty'}",
        f"connections   {text(connections.get('open'))} open, {text(connections.get('total'))} since start",
        f"tunnels       {text(tunnels.get('busy'))} busy, {text(tunnels.get('idle'))} idle",
        f"CA            {paint('reachable', 'green') if ca.get('reachable') else paint('not reachable', 'red')}"
        + (f": {text(ca['last_error'])}" if ca.get("last_error") else ""),
    ]
    levels: Row = answer.get("log_levels") or {}
    if levels.get("modules"):
        modules = ", ".join(f"{text(name)} {text(level)}" for name, level in levels["modules"].items())
        lines.append(f"log level     {text(levels.get('level'))}; {modules}")
    for worker in answer.get("workers") or ():
        row: Row = worker
        state, colour = text(row.get("state")), "green" if row.get("state") == "ready" else "yellow"
        lines.append(
            f"worker {text(row.get('worker')):<6} {paint(state, colour)}, pid {text(row.get('pid'))}, "
            f"up {duration(row.get('uptime_s'))}, {text(row.get('connections'))} open, "
            f"{size(row.get('resident_bytes'))} resident"
        )
    for problem in registry.get("problems") or ():
        where = ", ".join(
            f"{word} {text(problem[key])}"
            for word, key in (("document", "document"), ("line", "line"), ("at", "path"))
            if problem.get(key) not in {None, ""}
        )
        lines.append(
            f"{paint('problem', 'red')}       {text(problem.get('file'))}{f' ({where})' if where else ''}: "
            f"{text(problem.get('reason'))}"
        )
    lines += [f"{paint('conflict', 'yellow')}      {text(line)}" for line in registry.get("conflicts") or ()]
    lines += [f"{paint('skipped', 'yellow')}       {text(skipped)}" for skipped in registry.get("skipped") or ()]
    return "\n".join(lines)


def _federated(answer: Row) -> str:
    trust: Row = answer.get("trust") or {}
    others = [text(name) for name in trust.get("trust_domains") or () if name != answer.get("trust_domain")]
    return f", federated with {', '.join(others)}" if others else ""
