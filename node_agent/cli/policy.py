"""``ringfence policy check``: what is wrong with AuthorizationPolicies, before they bite."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from node_agent.cli.agent_address import DEFAULT_SOCKET
from node_agent.cli.question import add_command
from node_agent.cli.terminal import Paint, printable

if TYPE_CHECKING:
    from node_agent.cli.policy_files import Placed, Read, Refused
    from node_agent.policy.check import Cluster

_COLOURS: Final = {"error": "red", "warning": "yellow", "note": "dim"}
_WRONG: Final = ("error", "warning")

Row = dict[str, Any]


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``policy``."""
    text = "check AuthorizationPolicies before they are in force"
    policy = commands.add_parser(
        "policy", help=text, description="Checks AuthorizationPolicies before they are in force."
    )
    below = policy.add_subparsers(title="commands", metavar="COMMAND [OPTIONS]", required=True)
    check = add_command(
        below,
        "check",
        text="what is wrong with policies in files",
        description=(
            "Reads AuthorizationPolicies and says what the agent would refuse, what never matches,\n"
            "what matches more than it says, and what other rules make superfluous.  With --manifests\n"
            "or --agent, or with pods among the files, also which namespaces, identities and selectors\n"
            "fit nothing that exists.\n\n"
            "Exit codes: 0 nothing is wrong (notes aside), 1 something is or can not be read, 2 wrong arguments."
        ),
        examples=[
            "ringfence policy check web.yaml                                         # needs no agent",
            "ringfence policy check --manifests /etc/ringfence/manifests web.yaml    # knows who exists there",
            f"ringfence policy check --agent {DEFAULT_SOCKET} web.yaml  # ... by the running agent",
            "kubectl get authorizationpolicy -A -o yaml | ringfence policy check -",
        ],
    )
    check.add_argument(
        "files", metavar="FILE", nargs="+", help="YAML or JSON; a directory of it; - for what comes in on stdin"
    )
    check.add_argument("--manifests", metavar="DIR", help="what exists: the manifests of this directory, policies too")
    check.add_argument(
        "--agent",
        metavar="PATH",
        help=f"what exists: by the running agent with this unix socket, mostly {DEFAULT_SOCKET}",
    )
    check.add_argument(
        "--trust-domain", metavar="NAME", help="the mesh's; default what the agent says, else cluster.local"
    )
    check.add_argument("--json", action="store_true", help="print the findings as JSON")
    check.set_defaults(run=_check)


def _check(args: argparse.Namespace) -> int:
    """Read, judge, show; raises AgentUnavailable, which ``main`` turns into one line."""
    from node_agent.cli import policy_files  # noqa: PLC0415  (reads manifests: only when asked)

    try:
        found = policy_files.read(args.files)
        cluster = _cluster(args, found)
    except policy_files.Unreadable as error:
        print(f"ringfence: {printable(str(error))}", file=sys.stderr)
        return 1
    rows = sorted([*_refusals(found), *_findings(found, cluster)], key=_place)
    answer = {
        "files": len(found.texts),
        "policies": len(found.policies),
        "workloads_known": len(cluster.workloads),
        "findings": rows,
        "skipped": found.skipped,
    }
    print(json.dumps(answer, indent=2) if args.json else view(answer, Paint(sys.stdout)))
    return 1 if any(row["severity"] in _WRONG for row in rows) else 0


def _cluster(args: argparse.Namespace, found: "Read") -> "Cluster":
    from node_agent.cli import policy_files  # noqa: PLC0415

    # What is checked replaces what is there under the same name.
    known = {} if args.manifests is None else {each.key: each for each in policy_files.objects_in(args.manifests)}
    known |= {each.object.key: each.object for each in found.objects}
    if args.agent is not None:
        return policy_files.cluster_of_agent(args.agent, known.values(), trust_domain=args.trust_domain)
    return policy_files.cluster_of(known.values(), trust_domain=args.trust_domain)


def _refusals(found: "Read") -> Iterator[Row]:
    for each in found.refused:
        yield _about(each, "error", "refused", f"{each.reason} (the agent refuses the whole file)")
    for each in found.misspelt:
        yield _about(each, "warning", "no-policy", each.reason)


def _about(each: "Refused", severity: str, code: str, message: str) -> Row:
    return {
        "severity": severity,
        "code": code,
        "file": each.file,
        "line": each.line,
        "policy": None,
        "path": each.path,
        "message": message,
    }


def _findings(found: "Read", cluster: "Cluster") -> Iterator[Row]:
    from ca.manifests import AuthorizationPolicy  # noqa: PLC0415
    from ca.manifests.fields import path_text  # noqa: PLC0415
    from node_agent.policy.check import check  # noqa: PLC0415

    placed: dict[str, Placed] = {}
    for each in found.policies:
        name = f"{each.object.key.namespace}/{each.object.key.name}"
        if name in placed:
            first = placed[name]
            where = "is twice in this file" if first.file == each.file else f"is also in {first.file}"
            yield {
                "severity": "error",
                "code": "refused",
                "file": each.file,
                "line": found.line(each, ("metadata", "name")),
                "policy": name,
                "path": "metadata.name",
                "message": f"{where}; only one of the two is in force: remove the other",
            }
        else:
            placed[name] = each
    policies = [each.object for each in placed.values() if isinstance(each.object, AuthorizationPolicy)]
    for finding in check(policies, cluster):
        each = placed[str(finding.policy)]
        yield {
            "severity": finding.severity.value,
            "code": finding.code.value,
            "file": each.file,
            "line": found.line(each, finding.path),
            "policy": str(finding.policy),
            "path": path_text(finding.path),
            "message": finding.message,
        }


def _place(row: Row) -> tuple[str, int]:
    return row["file"], row["line"]


def view(answer: Row, paint: Paint) -> str:
    """One line a finding, then how many."""
    rows: Sequence[Row] = answer["findings"]
    lines = [_line(row, paint) for row in rows]
    lines += [paint(f"skipped: {printable(each)}", "dim") for each in answer["skipped"]]
    counts = Counter(row["severity"] for row in rows)
    said = [f"{counts[each]} {each}{'s' if counts[each] != 1 else ''}" for each in _COLOURS if counts[each]]
    policies = answer["policies"]
    known = answer["workloads_known"]
    against = (
        f"against {known} workload{'s' if known != 1 else ''}"
        if known
        else "by themselves: --manifests or --agent says who exists"
    )
    well = paint("nothing is wrong", "green") if policies else paint("there is no AuthorizationPolicy in it", "yellow")
    result = ", ".join(said) or well
    lines.append(f"{policies} polic{'ies' if policies != 1 else 'y'} checked {against}: {result}")
    return "\n".join(lines)


def _line(row: Row, paint: Paint) -> str:
    where = f"{row['file']}:{row['line']}" if row["line"] else row["file"]
    about = ", ".join(filter(None, (row["policy"], row["path"])))
    severity = paint(row["severity"], _COLOURS[row["severity"]])
    text = f"{printable(about)}: {printable(row['message'])}" if about else printable(row["message"])
    return f"{printable(where)}: {severity}: {text} [{row['code']}]"
