"""Medians and spread of what was measured, as JSON and as Markdown."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Final

from bench.peers import PEERS
from bench.targets import Samples

_TITLES: Final = {
    "latency": "Request latency, 1 connection",
    "rps64": "Requests, 64 connections",
    "conns": "New connections, one request each, 16 at a time",
    "bulk": "Bulk, one connection",
    "fairness": "A ping-pong while four bulk connections run",
    "memory": "Memory",
    "registry": "Registry at scale",
    "policies": "5,000 authorization policies",
    "issuing": "Issuing certificates",
    "storm": "A thousand agents come back at once",
    "start": "Start of an agent with 200 identities",
    "simulator": "What clients feel while endpoints fail, policy by policy (a model)",
    "workers": "Workers: 1 against 2",
    "capture": "A connect with cgroup capture, with iptables REDIRECT, and direct",
    "connectlb": "A connect to a cluster IP: chosen at connect, iptables DNAT; and direct",
    "lane": "The same-node lane, and direct",
    "sockmap": "Plaintext on an agent: relayed by the kernel (ringfence), and by the agent (relay)",
}


def summary(samples: Samples) -> dict[str, Any]:
    """Median, least and greatest of each figure, and every round's value."""
    return {
        measure: {
            peer: {figure: _summary_of(values) for figure, values in figures.items()} for peer, figures in peers.items()
        }
        for measure, peers in samples.items()
    }


def _summary_of(values: Sequence[float]) -> dict[str, Any]:
    return {
        "median": _rounded(median(values)),
        "min": _rounded(min(values)),
        "max": _rounded(max(values)),
        "rounds": [_rounded(value) for value in values],
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}") if abs(value) < 10_000 else round(value)


def markdown(result: Mapping[str, Any]) -> str:
    """The targets, then every figure, then the machine."""
    parts = ["# Benchmark", "", _machine_line(result["machine"]), "", "## Targets", ""]
    parts += _targets_table(result["targets"])
    if result["left_out"]:
        parts += ["", f"Left out of this run: {', '.join(result['left_out'])}."]
    for measure, peers in result["measures"].items():
        parts += ["", f"## {_TITLES.get(measure, measure)}", "", *_figures_table(peers)]
    if result["failures"]:
        parts += ["", "## Failures", "", *(f"- {each}" for each in result["failures"])]
    if result["handshakes"]:
        parts += ["", "## TLS handshakes seen on the wire", "", *_handshakes_table(result["handshakes"])]
    parts += ["", "## Machine, versions, commands", ""]
    parts += [f"- {name}: {value}" for name, value in result["machine"].items() if name != "versions"]
    parts += [f"- {name}: {value}" for name, value in result["machine"]["versions"].items()]
    parts += ["", "```", *result["commands"], "```", ""]
    return "\n".join(parts)


def _machine_line(machine: Mapping[str, Any]) -> str:
    return f"{machine['date']}, {machine['cores']} cores of {machine['cpu']}, Linux {machine['kernel']}."


def _targets_table(targets: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [["target", "Ringfence", "reference", "ratio", "spread", "must", "stretch", "met"]]
    for each in targets:
        sign = ">=" if each["more_is_better"] else "<="
        reference = "-" if each["reference"] is None else f"{_text(each['reference'])} ({each['reference_is']})"
        spread = "-" if each["spread"] is None else f"{each['spread'][0]:.2f} to {each['spread'][1]:.2f}"
        rows.append(
            [
                each["measure"],
                "-" if each["value"] is None else _text(each["value"]),
                reference,
                "-" if each["ratio"] is None else f"{each['ratio']:.2f}",
                spread,
                f"{sign} {each['must']:g}",
                f"{sign} {each['stretch']:.2g}",
                {None: "not measured", False: "no", True: "yes"}[each["met"]]
                + (", stretch" * bool(each["stretch_met"])),
            ]
        )
    return _table(rows)


def _figures_table(peers: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    names = sorted(peers, key=lambda name: PEERS.index(name) if name in PEERS else len(PEERS))
    figures = list(dict.fromkeys(figure for name in names for figure in peers[name]))
    rows = [["median (least to greatest)", *names]]
    for figure in figures:
        cells = []
        for name in names:
            found = peers[name].get(figure)
            if found is None:
                cells.append("-")
            elif found["min"] == found["max"]:
                cells.append(_text(found["median"]))
            else:
                cells.append(f"{_text(found['median'])} ({_text(found['min'])} to {_text(found['max'])})")
        rows.append([figure.replace("_", " "), *cells])
    return _table(rows)


def _handshakes_table(handshakes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    columns = list(next(iter(handshakes.values())))
    rows = [["peer", *(column.replace("_", " ") for column in columns)]]
    rows += [[peer, *(_cell(found[column]) for column in columns)] for peer, found in handshakes.items()]
    return _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]


def _cell(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _text(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
