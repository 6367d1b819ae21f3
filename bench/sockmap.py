"""Plaintext that the kernel relays beside plaintext that the agent does: ``python -m bench.sockmap``, as root.

A client in the mesh, a server that is not, on one node: the agent between them
passes on what it is given.  It is restarted for each change, turn by turn.

Runs in a process of its own and prints one object of JSON: way > figure > one
value a round; ``relay`` is the agent, ``ringfence`` the kernel.
"""

import time
from typing import Final

from bench import measures
from bench.in_rounds import Rounds, print_rounds
from bench.peers import Ringfence
from bench.testbed import BenchError, Testbed, say

_WAYS: Final = {"relay": "false", "ringfence": "true"}
_SETTLE_S: Final = 1.0


def _measured(rounds: int, seconds: float) -> Rounds:
    found: Rounds = {way: {} for way in _WAYS}
    with Testbed(mesh=True, plain=True, capture="inpod-bpf", one_node=True) as testbed:
        peer = Ringfence(testbed, server="plain-server")
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for way in _WAYS if number % 2 else reversed(_WAYS):
                for figure, value in _turn(testbed, peer, way, seconds).items():
                    found[way].setdefault(figure, []).append(value)
    return found


def _turn(testbed: Testbed, peer: Ringfence, way: str, seconds: float) -> measures.Figures:
    testbed.configure_agents("relay", "sockmap", _WAYS[way])
    peer.restart()
    time.sleep(_SETTLE_S)
    measures.warm_up(testbed, peer)
    small, one = measures.messages(testbed, peer, seconds), measures.latency(testbed, peer, seconds)
    many = measures.rps64(testbed, peer, seconds)
    if way == "ringfence" and not testbed.metric(1, "ringfence_sockmap_taken_total"):
        raise BenchError("the kernel has relayed nothing; `ringfence status` says why")
    return small | _named("latency", one) | _named("rps64", many)


def _named(measure: str, figures: measures.Figures) -> measures.Figures:
    return {f"{measure}_{figure}": value for figure, value in figures.items()}


if __name__ == "__main__":
    print_rounds("sockmap", _measured, description=__doc__, rounds=5)
