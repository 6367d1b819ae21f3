"""Memory of a peer: idle, and with many idle connections through it."""

import subprocess
import time
from typing import Final

from bench import accounting
from bench.measures import Figures
from bench.peers import Peer, require
from bench.testbed import Testbed

_AT_A_TIME: Final = "32"
_SETTLE_S: Final = 1.0


def memory(testbed: Testbed, peer: Peer, connections: int) -> Figures:
    """Restart the peer; its memory before any connection, and for each of ``connections`` idle ones.

    Each connection has carried one byte each way, so that it is open from end to
    end.  The peer's processes are anew: memory that an earlier load had freed
    does not hide what a connection takes.
    """
    peer.restart()
    time.sleep(_SETTLE_S)
    before = {side: accounting.memory(pid) for side, pid in peer.processes().items()}
    host, port = peer.target("echo")
    command = [str(testbed.load), "hold", host, str(port), str(connections), _AT_A_TIME]
    holder = subprocess.Popen(
        testbed.inside(peer.client, command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        try:
            assert holder.stdout is not None
            report = testbed.parse(holder.stdout.readline())
            require(peer, "idle connections", report["errors"] == 0 and report["open"] == connections, report)
            time.sleep(_SETTLE_S)
            after = {side: accounting.memory(pid) for side, pid in peer.processes().items()}
        finally:
            holder.kill()
    figures: Figures = {"idle_connections": connections, "open_s": report["seconds"]}
    for side, idle in before.items():
        figures[f"{side}_idle_rss_mb"] = idle.rss_bytes / 1e6
        figures[f"{side}_idle_pss_mb"] = idle.pss_bytes / 1e6
        figures[f"{side}_rss_kb_per_connection"] = (after[side].rss_bytes - idle.rss_bytes) / connections / 1e3
        figures[f"{side}_pss_kb_per_connection"] = (after[side].pss_bytes - idle.pss_bytes) / connections / 1e3
    for what in ("idle_rss_mb", "rss_kb_per_connection"):
        values = [value for name, value in figures.items() if name.endswith(what)]
        if values:
            figures[f"larger_{what}"] = max(values)
    return figures
