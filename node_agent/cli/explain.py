"""``ringfence explain``: why a connection is allowed or denied, and what would change that."""

import argparse
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from node_agent.cli.agent_socket import ask
from node_agent.cli.names import completes, service_names, workload_names
from node_agent.cli.question import add_agent_options, add_command, show
from node_agent.cli.rows import Row, text
from node_agent.cli.terminal import Paint

_OF_A_RECORD: Final = ("close_reason", "policy", "audit", "dry_run", "fault", "detail")
_COLOURS: Final = {"allowed": "green", "denied": "red", "depends": "yellow"}


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``explain``."""
    parser = add_command(
        commands,
        "explain",
        text="why a connection is allowed or denied, and what would change that",
        description="Says whether a connection would be allowed, by which policy and rule, as which identities, to\n"
        "which endpoints and under which limits, and what would have to change; or the same of a past\n"
        "connection.  Any agent can answer; what counts is what the agent of the destination's node says.",
        examples=[
            "ringfence explain cart web:80                   # [NAMESPACE/]POD to [NAMESPACE/]SERVICE:PORT",
            "ringfence explain shop/cart 10.247.2.3:8080     # to an address; IPv6 as [fd00::1]:8080",
            "ringfence explain 192.0.2.7 shop/web:80         # from outside of the mesh",
            "ringfence explain node-1-1799f1-12              # a past connection, by the id of its record",
        ],
    )
    source = parser.add_argument(
        "source", metavar="SOURCE|RECORD_ID", help="[NAMESPACE/]POD or an address; or a record's id"
    )
    completes(source, workload_names)
    destination = parser.add_argument(
        "destination",
        metavar="DESTINATION:PORT",
        nargs="?",
        help="[NAMESPACE/]SERVICE:PORT (the port may be left out if there is one), [NAMESPACE/]POD:PORT, ADDRESS:PORT",
    )
    completes(destination, service_names)
    add_agent_options(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.destination is None:
        answer, args.view = ask(args.agent, "/explain/record", id=args.source), past_view
    else:
        answer, args.view = ask(args.agent, "/explain", source=args.source, destination=args.destination), view
    show(answer, args)
    return 0


def view(answer: Row, paint: Paint) -> str:
    """The answer, then its grounds, then what could be done."""
    return "\n".join(_lines(answer, paint))


def past_view(answer: Row, paint: Paint) -> str:
    """What the record says, and what would be said now."""
    record: Row = answer["record"]
    lines = [paint(text(answer["summary"]), "bold"), ""]
    for key in ("time", "direction", "source_identity", "destination_identity", *_OF_A_RECORD):
        if record.get(key):
            lines.append(_field(key.replace("_", " "), text(record[key]), width=22))
    now = answer.get("now")
    lines.append("")
    if now is None:
        lines.append(_field("now", "nobody here would judge it: the destination is gone, or not in the mesh"))
    else:
        lines.append(_field("now", _verdict(now, paint)))
        lines += _decision(now, paint)
    return "\n".join(lines)


def _lines(answer: Row, paint: Paint) -> Iterator[str]:
    verdict = answer["verdict"]
    yield f"{paint(verdict.upper(), _COLOURS.get(verdict, ''))}  {text(answer['summary'])}"
    yield ""
    source: Row = answer["source"]
    where = f" on {text(source['node'])}" if source["node"] else ""
    who = f"{text(source['workload'])}{where}, " if source["workload"] else ""
    yield _field("source", f"{who}{', '.join(source['addresses'])}")
    yield _field(
        "", text(source["identity"]) if source["enrolled"] else "not in the mesh: plaintext, without an identity"
    )
    yield from _destination(answer)
    decided = ", ".join(map(text, answer["decided_on"]))
    if decided:
        binding = (
            "this agent"
            if answer["binding"]
            else f"what the agent of {decided} says is binding; this is {text(answer['node'])}"
        )
        yield _field("decided on", f"{decided} ({binding})")
    grouped: dict[tuple[str, ...], list[str]] = {}
    for decision in answer["decisions"]:
        # Often the same by IPv4 and by IPv6.
        said = (_verdict(decision, paint), *_decision(decision, paint))
        grouped.setdefault(said, []).extend(map(text, decision["endpoints"]))
    for (verdict_there, *grounds), endpoints in grouped.items():
        yield ""
        if len(grouped) > 1:
            yield f"{', '.join(endpoints)}: {verdict_there}"
        yield from grounds
    for problem in answer["problems"]:
        yield f"{paint('problem', 'red')}      {text(problem)}"


def _destination(answer: Row) -> Iterator[str]:
    destination: Row = answer["destination"]
    name = text(destination["service"] or destination["asked"])
    route = f", split by TCPRoute {text(destination['tcp_route'])}" if destination["tcp_route"] else ""
    yield _field("destination", f"{name}{route}")
    if destination["tcp_route"]:
        for backend in destination["backends"]:
            yield _field("", f"{backend['percent']:g} % to {text(backend['service'])}")
    rows: list[Row] = answer["endpoints"]
    if rows:
        ready = [row for row in rows if row["ready"]]
        healthy = sum(row["health"] == "healthy" for row in ready)
        yield _field("endpoints", f"{len(rows)}, {len(ready)} ready, {healthy} healthy")
        for row in rows:
            if not row["ready"] or row["health"] != "healthy":
                state = text(row["health"]) if row["ready"] else "not ready"
                yield _field("", f"{text(row['address'])} {state}" + (f" ({text(row['why'])})" if row["why"] else ""))
    same: dict[tuple[str, ...], list[str]] = {}
    for traffic in answer["traffic"]:
        same.setdefault(tuple(_traffic(traffic)), []).append(text(traffic["service"]))
    for lines, services in same.items():
        if len(same) > 1:  # the backends of a split differ
            yield _field("towards", ", ".join(services))
        yield from lines


def _traffic(traffic: Row) -> Iterator[str]:
    by = f" (TrafficPolicy {text(traffic['policy'])})" if traffic["policy"] else ""
    yield _field("balancing", f"{text(traffic['load_balancing'])}{by}")
    if at_connect := traffic.get("at_connect"):
        said = "yes, by weights, without the agent" if at_connect["balanced"] else f"no: {text(at_connect['why_not'])}"
        yield _field("at connect", said)
    for what in ("limits", "rate_limit"):
        if traffic[what]:
            yield _field(what.replace("_", " "), _values(traffic[what]))
    for fault in traffic["faults"]:
        yield _field("fault", _values({key: value for key, value in fault.items() if value}))


def _decision(decision: Row, paint: Paint) -> Iterator[str]:
    mode = f", PeerAuthentication {text(decision['mtls_mode'])}" if decision["mtls_mode"] else ""
    yield _field("way", f"{'mutual TLS' if decision['security'] == 'mutual_tls' else 'plaintext'}{mode}")
    if decision["policy"]:
        file = f", in {text(decision['file'])}" if decision["file"] else ""
        yield _field("decided by", f"{text(decision['policy'])}, rule {decision['rule']}{file}")
    elif decision["allowed"] and not decision["policies"]:
        yield _field("decided by", "no policy is about it")
    for policy in decision["policies"]:
        yield from _policy(policy, paint)
    for key in ("audit", "dry_run"):
        if decision[key]:
            value = decision[key]
            yield _field(key.replace("_", " "), text(value if isinstance(value, str) else ", ".join(value)))
    for number, remedy in enumerate(decision["remedies"]):
        yield _field("" if number else "to allow it", text(remedy))


def _verdict(decision: Row, paint: Paint) -> str:
    shown = "allowed" if decision["allowed"] else "denied"
    return f"{paint(shown, _COLOURS[shown])}: {text(decision['detail']).removeprefix(f'{shown}: ')}"


def _policy(policy: Row, paint: Paint) -> Iterator[str]:
    matched = policy["matched_rule"]
    said = "has no rules: it matches nothing" if not policy["rules"] else "does not match"
    if matched is not None:
        said = paint(f"rule {matched} matches", "bold")
    trial = ", on dry run" if policy["dry_run"] else ""
    where = f"{text(policy['scope'])}{trial}" + (f"; {text(policy['file'])}" if policy["file"] else "")
    yield _field("policy", f"{text(policy['action'])} {text(policy['policy'])} ({where}): {said}")
    for rule in policy["rules"] if matched is None else ():
        for mismatch in rule["mismatches"]:
            yield _field("", f"rule {rule['rule']}: {text(mismatch)}")


def _values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{text(key)} {_one(value)}" for key, value in values.items())


def _one(value: Any) -> str:
    return " ".join(map(text, value)) if isinstance(value, Iterable) and not isinstance(value, str) else text(value)


def _field(name: str, value: str, *, width: int = 13) -> str:
    return f"{name:<{width}}{value}"
