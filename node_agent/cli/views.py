"""How each of the operator's commands shows the agent's answer to people."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from node_agent.cli.terminal import Cell, Paint, duration, printable, size, table

_STATE_COLOURS: Final = {
    "serving": "green",
    "valid": "green",
    "pending": "yellow",
    "renewing": "yellow",
    "waiting": "yellow",
    "opening": "yellow",
    "closing": "yellow",
    "expired": "red",
    "failed": "red",
    "revoked": "red",
}

Row = Mapping[str, Any]
View = Callable[[Any, Paint], str]


def status(answer: Row, paint: Paint) -> str:
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
        f"node          {_text(answer.get('node'))}  {ready}",
        *(f"              {paint('because', 'yellow')} {_text(reason)}" for reason in answer.get("reasons") or ()),
        *(f"              {paint('warning', 'yellow')} {_text(line)}" for line in answer.get("warnings") or ()),
        f"trust domain  {_text(answer.get('trust_domain'))}" + _federated(answer),
        f"agent         version {_text(answer.get('version'))}, pid {_text(answer.get('pid'))}, "
        f"up {duration(answer.get('uptime_s'))}",
        f"registry      {_text(registry.get('source'))}, revision {_text(registry.get('revision'))}, "
        f"digest {_text(registry.get('digest'))[:12]}",
        f"              {', '.join(f'{count} {_text(kind)}' for kind, count in objects.items()) or 'empty'}",
        f"connections   {_text(connections.get('open'))} open, {_text(connections.get('total'))} since start",
        f"tunnels       {_text(tunnels.get('busy'))} busy, {_text(tunnels.get('idle'))} idle",
        f"CA            {paint('reachable', 'green') if ca.get('reachable') else paint('not reachable', 'red')}"
        + (f": {_text(ca['last_error'])}" if ca.get("last_error") else ""),
    ]
    for worker in answer.get("workers") or ():
        row: Row = worker
        state, colour = _text(row.get("state")), "green" if row.get("state") == "ready" else "yellow"
        lines.append(
            f"worker {_text(row.get('worker')):<6} {paint(state, colour)}, pid {_text(row.get('pid'))}, "
            f"up {duration(row.get('uptime_s'))}, {_text(row.get('connections'))} open, "
            f"{size(row.get('resident_bytes'))} resident"
        )
    for problem in registry.get("problems") or ():
        where = ", ".join(
            f"{word} {_text(problem[key])}"
            for word, key in (("document", "document"), ("line", "line"), ("at", "path"))
            if problem.get(key) not in {None, ""}
        )
        lines.append(
            f"{paint('problem', 'red')}       {_text(problem.get('file'))}{f' ({where})' if where else ''}: "
            f"{_text(problem.get('reason'))}"
        )
    lines += [f"{paint('conflict', 'yellow')}      {_text(line)}" for line in registry.get("conflicts") or ()]
    lines += [f"{paint('skipped', 'yellow')}       {_text(skipped)}" for skipped in registry.get("skipped") or ()]
    return "\n".join(lines)


def _federated(answer: Row) -> str:
    trust: Row = answer.get("trust") or {}
    others = [_text(name) for name in trust.get("trust_domains") or () if name != answer.get("trust_domain")]
    return f", federated with {', '.join(others)}" if others else ""


def workloads(rows: Sequence[Row], paint: Paint) -> str:
    """Every workload that the agent knows; the local ones are those it serves."""
    return _table(
        rows,
        paint,
        ("NAMESPACE", lambda r: _text(r.get("namespace"))),
        ("NAME", lambda r: _text(r.get("name"))),
        ("NODE", lambda r: _text(r.get("node")) + (" (here)" if r.get("local") else "")),
        ("ADDRESSES", lambda r: ",".join(map(str, r.get("addresses") or ())) or "-"),
        ("STATE", lambda r: _state(r.get("state"))),
        ("IDENTITY", lambda r: _text(r.get("identity"))),
        ("ERROR", lambda r: _text(r.get("error"))),
    )


def services(rows: Sequence[Row], paint: Paint) -> str:
    """Every service and how many of its endpoints are ready."""

    def ready(row: Row) -> Cell:
        count, total = row.get("ready"), row.get("endpoints")
        return f"{_text(count)}/{_text(total)}", "red" if not count else "green" if count == total else "yellow"

    return _table(
        rows,
        paint,
        ("NAMESPACE", lambda r: _text(r.get("namespace"))),
        ("NAME", lambda r: _text(r.get("name"))),
        ("ADDRESSES", lambda r: ",".join(map(str, (*(r.get("cluster_ips") or ()), *(r.get("hosts") or ())))) or "-"),
        ("PORTS", lambda r: ",".join(_port(p) for p in r.get("ports") or ()) or "-"),
        ("BALANCING", lambda r: _text(r.get("load_balancing"))),
        (">READY", ready),
    )


def endpoints(rows: Sequence[Row], paint: Paint) -> str:
    """The endpoints of the services, as the balancer sees them."""
    return _table(
        rows,
        paint,
        ("SERVICE", lambda r: f"{_text(r.get('service'))}:{_text(r.get('port'))}"),
        ("ADDRESS", lambda r: _text(r.get("address"))),
        ("WORKLOAD", lambda r: _text(r.get("workload"))),
        ("READY", lambda r: ("yes", "green") if r.get("ready") else ("no", "red")),
        ("HEALTH", _health),
        (">WEIGHT", lambda r: f"{r.get('weight', 1):g}"),
        (">OPEN", lambda r: _text(r.get("open_connections"))),
        (">LATENCY", lambda r: _milliseconds(r.get("latency_ms"))),
        ("IDENTITY", lambda r: _text(r.get("identity"))),
    )


def _health(row: Row) -> Cell:
    """How the endpoint is, and why not better."""
    text, why, left_s = _text(row.get("health")), row.get("why"), row.get("ejected_for_s")
    if why:
        text += f" ({_text(why)}" + (f", {left_s:.0f} s left)" if left_s else ")")
    return text, "green" if row.get("health") == "healthy" else "red"


def connections(rows: Sequence[Row], paint: Paint) -> str:
    """The live connections, oldest first; with the worker process that holds each, if there are any."""
    worker: list[tuple[str, Callable[[Row], Cell]]] = []
    if any(row.get("worker") is not None for row in rows):
        worker.append((">WORKER", lambda r: _text(r.get("worker"))))
    return _table(
        sorted(rows, key=lambda r: -(r.get("age_s") or 0)),
        paint,
        *worker,
        ("ID", lambda r: _text(r.get("id"))),
        ("DIRECTION", lambda r: _text(r.get("direction"))),
        ("SOURCE", lambda r: _text(r.get("source"))),
        ("DESTINATION", lambda r: _text(r.get("original_destination"))),
        ("SERVICE", lambda r: _text(r.get("service"))),
        ("ENDPOINT", lambda r: _text(r.get("endpoint"))),
        (">AGE", lambda r: duration(r.get("age_s"))),
        (">RECEIVED", lambda r: size(r.get("received_bytes"))),
        (">SENT", lambda r: size(r.get("sent_bytes"))),
        ("STATE", lambda r: _state(r.get("state"))),
    )


def certs(rows: Sequence[Row], paint: Paint) -> str:
    """The certificates that the agent holds."""
    return _table(
        rows,
        paint,
        ("IDENTITY", lambda r: _text(r.get("identity"))),
        ("SERIAL", lambda r: _text(r.get("serial"))),
        ("NOT BEFORE", lambda r: _text(r.get("not_before"))),
        ("NOT AFTER", lambda r: _text(r.get("not_after"))),
        ("STATE", lambda r: _state(r.get("state"))),
        ("LAST ERROR", lambda r: _text(r.get("last_error"))),
    )


def log_level(answer: Row, _: Paint) -> str:
    """The level now in force."""
    return f"log level is now {_text(answer.get('level'))}"


def _table(rows: Sequence[Row], paint: Paint, *columns: tuple[str, Callable[[Row], Cell]]) -> str:
    if not rows:
        return "none"
    return table([header for header, _ in columns], [[cell(row) for _, cell in columns] for row in rows], paint)


def _text(value: object) -> str:
    return "-" if value is None or value == "" else printable(str(value))


def _state(value: object) -> Cell:
    text = _text(value)
    return text, _STATE_COLOURS.get(text, "")


def _port(port: Row) -> str:
    return f"{port['name']}:{port.get('port')}" if port.get("name") else str(port.get("port"))


def _milliseconds(value: object) -> str:
    return f"{value:.1f} ms" if isinstance(value, int | float) else "-"
