"""Ringfence with one process and with two workers: what a second core is good for, and what it costs.

Both agents are restarted for each change, turn by turn, so that a slow moment of
the machine hits both.  Figures end in ``_1`` and ``_2``.  The loads are those
that more connections than one can spread: requests on 64 connections, new
connections, and bulk data on four.
"""

import time
from typing import Final

from bench import accounting, measures
from bench.iperf3 import BulkLoad
from bench.measures import Figures
from bench.peers import Peer
from bench.testbed import Testbed

_COUNTS: Final = (1, 2)
_BULK_CONNECTIONS: Final = "4"
_SETTLE_S: Final = 1.0


def workers(testbed: Testbed, peer: Peer, seconds: float) -> Figures:
    """One turn with each number of workers; the agents are left with the last one."""
    figures: Figures = {}
    for count in _COUNTS:
        testbed.configure_agents("agent", "workers", str(count))
        peer.restart()
        time.sleep(_SETTLE_S)
        figures |= {f"{name}_{count}": value for name, value in _turn(testbed, peer, seconds).items()}
    return figures


def _turn(testbed: Testbed, peer: Peer, seconds: float) -> Figures:
    idle = [accounting.memory(pid) for pid in peer.processes().values()]
    measures.warm_up(testbed, peer)
    requests = measures.rps64(testbed, peer, seconds)
    connections = measures.conns(testbed, peer, seconds)
    before = accounting.cpu_s(peer.processes().values())
    with BulkLoad(testbed, peer, options=["--parallel", _BULK_CONNECTIONS], seconds=seconds) as load:
        load.begin()
        received = load.received()
    bulk_cpu_s = accounting.cpu_s(peer.processes().values()) - before
    return {
        "requests_per_s": requests["requests_per_s"],
        "requests_p99_us": requests["p99_us"],
        "cpu_s_per_10k_requests": requests["cpu_s_per_10k_requests"],
        "connections_per_s": connections["connections_per_s"],
        "connections_p99_us": connections["p99_us"],
        "cpu_s_per_10k_connections": connections["cpu_s_per_10k_connections"],
        "bulk4_gbit_per_s": received.gbit_per_s,
        "bulk4_cpu_s_per_gb": bulk_cpu_s / received.gigabytes,
        "idle_rss_mb": max(each.rss_bytes for each in idle) / 1e6,
        "idle_pss_mb": max(each.pss_bytes for each in idle) / 1e6,
    }
