"""What the kernel holds in the network namespace of each pod of this node.

A program of the machine is run in the pod's network (nsenter(1), which calls
setns(2) in a child): nothing of the pod is executed or trusted, and nothing of
this process ever enters it.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from node_agent.cli.bundle.host import Missing, run

_QUESTIONS: Final[Mapping[str, Sequence[str]]] = {
    "nft": ("nft", "list", "ruleset"),
    "iptables": ("iptables-save",),
    "rules": ("ip", "rule"),
    "rules-6": ("ip", "-6", "rule"),
    "routes": ("ip", "route", "show", "table", "all"),
    "routes-6": ("ip", "-6", "route", "show", "table", "all"),
    "addresses": ("ip", "address"),
    "listeners": ("ss", "-tlnH"),
}
_MAX_PODS: Final = 250  # more than Kubernetes puts on a node


def networks(workloads: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """``(part, text, problem)`` of each served pod."""
    template = str((config.get("capture") or {}).get("netns_path") or "")
    local = [row for row in workloads if row.get("local") and row.get("enrolled")]
    for row in local[:_MAX_PODS]:
        folder = f"pods/{row.get('namespace')}_{row.get('name')}"
        try:
            path = Path(template.format(namespace=row.get("namespace"), name=row.get("name"), uid=row.get("uid")))
        except (LookupError, ValueError) as error:
            yield folder, "", f"[capture] netns_path is not understood: {error}"
            continue
        if not path.exists():
            yield folder, "", f"its network {path} is not there"
            continue
        for name, question in _QUESTIONS.items():
            try:
                yield f"{folder}/{name}.txt", run(("nsenter", f"--net={path}", "--", *question)), ""
            except Missing as missing:
                yield f"{folder}/{name}.txt", "", str(missing)
    if len(local) > _MAX_PODS:
        yield "pods", "", f"only the first {_MAX_PODS} of {len(local)}"
