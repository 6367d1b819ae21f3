"""What ``ringfence bpf status`` shows of what is loaded."""

import io
from typing import Any

from node_agent.cli.bpf import view
from node_agent.cli.terminal import Paint

_LOADED: dict[str, Any] = {
    "pins": "/sys/fs/bpf/ringfence",
    "loaded": True,
    "problem": None,
    "generation": 3,
    "in_use": True,
    "features": [],
    "maps": [],
}


def _shown(**found: object) -> str:
    return view({**_LOADED, **found}, Paint(io.StringIO()))


def test_a_link_is_called_orphaned_only_when_what_it_was_attached_to_is_gone() -> None:
    lines = _shown(
        links=[
            {"workload": "netns-1", "hook": "pod_sk_lookup", "cgroup_id": None, "attached": True},
            {"workload": "netns-2", "hook": "pod_sk_lookup", "cgroup_id": None, "attached": False},
        ]
    ).splitlines()

    assert [line.split(maxsplit=1) for line in lines if line.startswith("netns-")] == [
        ["netns-1", "pod_sk_lookup"],
        ["netns-2", "pod_sk_lookup (what it was attached to is gone)"],
    ]


def test_where_nothing_is_loaded_one_sentence_says_what_to_do() -> None:
    problem = "nothing is loaded; run `ringfence bpf load`"
    assert _shown(loaded=False, problem=problem) == problem
