"""The same-node lane beside no mesh at all: ``python -m bench.lane``, as root; 2 minutes.

Client and server are pods of one node, once in the mesh with the lane, once not;
turn by turn, so that a slow moment of the machine hits both.  The programs of
the lane are loaded in either case: at the node's hooks they see, and let pass,
what is not in the mesh.

Prints one object of JSON: medians, and the ratio to the limit of each target
(docs/bpf.md).
"""

import argparse
import json
import sys
from collections import defaultdict
from statistics import median
from typing import Final

from bench import measures
from bench.peers import Direct, Peer, Ringfence
from bench.testbed import Testbed, require_tools, say

_LANE: Final = """apiVersion: v1
kind: Namespace
metadata: {name: default, labels: {ringfence.io/mesh: enabled}, annotations: {ringfence.io/same-node: lane}}
"""
_MEASURES: Final = (measures.latency, measures.rps64, measures.conns)
_TARGETS: Final = {"p50_us": ("most", 1.05), "requests_per_s": ("least", 0.95), "connections_per_s": ("least", 0.9)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=2, help="of each load")
    options = parser.parse_args()
    require_tools()
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with Testbed(mesh=True, plain=True, capture="inpod-bpf", one_node=True) as testbed:
        manifest = testbed.directory / "lane.yaml"
        manifest.write_text(_LANE)
        testbed.lab("apply", str(manifest))
        peers: dict[str, Peer] = {"direct": Direct(testbed), "lane": Ringfence(testbed)}
        for peer in peers.values():
            measures.warm_up(testbed, peer)
        for number in range(options.rounds):
            say(f"round {number + 1} of {options.rounds}")
            for measure in _MEASURES:
                for name, peer in peers.items():
                    for figure, value in measure(testbed, peer, options.seconds).items():
                        values[f"{measure.__name__}: {figure}"][name].append(value)
        counted = json.loads(testbed.lab("ringfence", "1", "bpf", "status", "--json"))["maps"]
        lanes = next(each["entries"] for each in counted if each["name"] == "lanes")
    json.dump({"lanes": lanes, "figures": [_row(name, found) for name, found in values.items()]}, sys.stdout, indent=1)


def _row(name: str, found: dict[str, list[float]]) -> dict[str, object]:
    direct, lane = median(found["direct"]), median(found["lane"])
    row: dict[str, object] = {"figure": name, "direct": round(direct, 1), "lane": round(lane, 1)}
    if not direct:
        return row
    row["ratio"] = round(lane / direct, 3)
    kind, limit = _TARGETS.get(name.partition(": ")[2], ("", 0.0))
    if kind and (name.startswith("latency") or kind == "least"):
        row |= {kind: limit, "met": lane / direct <= limit if kind == "most" else lane / direct >= limit}
    return row


if __name__ == "__main__":
    main()
