"""The same-node lane beside no mesh at all: ``python -m bench.lane``, as root; 2 minutes.

Client and server are pods of one node, once in the mesh with the lane, once not;
turn by turn, so that a slow moment of the machine hits both.  The programs of
the lane are loaded in either case: at the node's hooks they see, and let pass,
what is not in the mesh.

Runs in a process of its own and prints one object of JSON: peer > figure > one
value a round.
"""

from typing import Final

from bench import measures
from bench.in_rounds import Rounds, print_rounds
from bench.peers import Direct, Peer, Ringfence
from bench.testbed import BenchError, Testbed, say

_LANE: Final = """apiVersion: v1
kind: Namespace
metadata: {name: default, labels: {ringfence.io/mesh: enabled}, annotations: {ringfence.io/same-node: lane}}
"""
_MEASURES: Final = (measures.latency, measures.rps64, measures.conns)
_MOST_PROXIED: Final = 0.01  # of the connections: the first of each generation go through the agent


def _measured(rounds: int, seconds: float) -> Rounds:
    found: Rounds = {}
    with Testbed(mesh=True, plain=True, capture="inpod-bpf", one_node=True) as testbed:
        manifest = testbed.directory / "lane.yaml"
        manifest.write_text(_LANE)
        testbed.lab("apply", str(manifest))
        peers: list[Peer] = [Direct(testbed), Ringfence(testbed)]
        for peer in peers:
            measures.warm_up(testbed, peer)
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for measure in _MEASURES:
                for peer in peers if number % 2 else reversed(peers):
                    for figure, value in measure(testbed, peer, seconds).items():
                        name = f"{measure.__name__}_{figure}"
                        found.setdefault(peer.name, {}).setdefault(name, []).append(value)
        _require_used(testbed)
    return found


def _require_used(testbed: Testbed) -> None:
    taken = testbed.metric(1, "ringfence_lane_taken_total")
    all_of_them = testbed.metric(1, "ringfence_connections_closed_total") / 2  # outbound and inbound
    if taken < (1 - _MOST_PROXIED) * all_of_them:
        raise BenchError(f"of {all_of_them:.0f} connections {taken:.0f} took the lane; `ringfence status` may say why")


if __name__ == "__main__":
    print_rounds("lane", _measured, description=__doc__, rounds=7)
