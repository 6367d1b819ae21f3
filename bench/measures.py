"""The measures: a load through one peer, what its clients saw, and what it cost.

Each function runs one load for ``seconds`` and returns figures by name, units in
the names.  They know peers only by where to connect and which processes to bill.
"""

import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from bench import accounting
from bench.iperf3 import BulkLoad
from bench.peers import Peer, require
from bench.testbed import Testbed

Figures = dict[str, float]

_CONCURRENT_CONNECTS: Final = "16"
_PING_BYTES: Final = "64"
_BULK_CONNECTIONS: Final = "4"
_BULK_LEAD_S: Final = 0.5  # how long the bulk load runs before and after the ping-pong
_WRK_REPORT: Final = """\
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format('REPORT {"requests": %d, "duration_us": %d, "errors": %d, "p50_us": %d, "p99_us": %d}\\n',
    summary.requests, summary.duration, errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


def latency(testbed: Testbed, peer: Peer, seconds: float) -> Figures:
    """HTTP requests one after the other on one connection."""
    report, _cpu_s = _wrk(testbed, peer, connections=1, seconds=seconds)
    return {"p50_us": report["p50_us"], "p99_us": report["p99_us"]}


def rps64(testbed: Testbed, peer: Peer, seconds: float) -> Figures:
    """HTTP requests on 64 connections that stay open."""
    report, cpu_s = _wrk(testbed, peer, connections=64, seconds=seconds)
    return {
        "requests_per_s": report["requests"] / (report["duration_us"] / 1e6),
        "p50_us": report["p50_us"],
        "p99_us": report["p99_us"],
        "cpu_s_per_10k_requests": cpu_s / report["requests"] * 10_000,
    }


def conns(testbed: Testbed, peer: Peer, seconds: float) -> Figures:
    """New connections with one HTTP request each, 16 at a time."""
    host, port = peer.target("http")
    before = accounting.cpu_s(peer.processes().values())
    report = _load(testbed, peer, "conns", host, str(port), str(seconds), _CONCURRENT_CONNECTS)
    cpu_s = accounting.cpu_s(peer.processes().values()) - before
    require(peer, "conns", report["count"] > 0 and report["errors"] == 0, report)
    return {
        "connections_per_s": report["per_second"],
        "p50_us": report["p50_us"],
        "p99_us": report["p99_us"],
        "cpu_s_per_10k_connections": cpu_s / report["count"] * 10_000,
    }


def bulk(testbed: Testbed, peer: Peer, seconds: float) -> Figures:
    """One connection that carries all it can: client to server, then server to client; then one each way."""
    figures: Figures = {}
    billed_gb = billed_s = 0.0
    for way, options in (("up", []), ("down", ["--reverse"])):
        before = accounting.cpu_s(peer.processes().values())
        with BulkLoad(testbed, peer, options=options, seconds=seconds) as load:
            load.begin()
            received = load.received()
        billed_s += accounting.cpu_s(peer.processes().values()) - before
        billed_gb += received.gigabytes
        figures[f"{way}_gbit_per_s"] = received.gbit_per_s
    with (
        BulkLoad(testbed, peer, seconds=seconds) as up,
        BulkLoad(testbed, peer, application="bulk2", options=["--reverse"], seconds=seconds) as down,
    ):
        for each in (up, down):
            each.begin()
        figures["both_gbit_per_s"] = up.received().gbit_per_s + down.received().gbit_per_s
    return figures | {"cpu_s_per_gb": billed_s / billed_gb}


def fairness(testbed: Testbed, peer: Peer, seconds: float) -> Figures:
    """The round trip of a small message while four bulk connections run (client to server)."""
    host, port = peer.target("echo")
    with BulkLoad(testbed, peer, options=["--parallel", _BULK_CONNECTIONS], seconds=seconds + 2 * _BULK_LEAD_S) as load:
        load.begin()
        time.sleep(_BULK_LEAD_S)  # iperf3 does not tell when its connections are up; the load has to be on
        report = _load(testbed, peer, "pingpong", host, str(port), str(seconds), _PING_BYTES)
        received = load.received()
    return {
        "p50_us": report["p50_us"],
        "p99_us": report["p99_us"],
        "max_us": report["max_us"],
        "round_trips": report["count"],
        "bulk_gbit_per_s": received.gbit_per_s,
    }


def messages(testbed: Testbed, peer: Peer, seconds: float) -> Figures:
    """Messages of 64 bytes, there and back, on 64 connections that stay open; not a measure by itself."""
    host, port = peer.target("echo")
    before = accounting.cpu_s(peer.processes().values())
    report = _load(testbed, peer, "messages", host, str(port), str(seconds), "64")
    cpu_s = accounting.cpu_s(peer.processes().values()) - before
    return {
        "requests_per_s": report["per_second"],
        "p50_us": report["p50_us"],
        "p99_us": report["p99_us"],
        "cpu_s_per_10k_requests": cpu_s / report["count"] * 10_000,
    }


MEASURES: Final[Mapping[str, Callable[[Testbed, Peer, float], Figures]]] = {
    "latency": latency,
    "rps64": rps64,
    "conns": conns,
    "bulk": bulk,
    "fairness": fairness,
}


def warm_up(testbed: Testbed, peer: Peer) -> None:
    """One request and one short load: whatever is set up on first use is set up, and the peer works.

    Raises:
        BenchError: it does not.
    """
    host, port = peer.target("http")
    for seconds, at_a_time in ((0.0, "1"), (0.5, _CONCURRENT_CONNECTS)):
        report = _load(testbed, peer, "conns", host, str(port), str(seconds), at_a_time)
        require(peer, "warm-up", report["count"] > 0 and report["errors"] == 0, report)


def _load(testbed: Testbed, peer: Peer, *arguments: str) -> dict[str, float]:
    return testbed.parse(_run(testbed, peer, [str(testbed.load), *arguments]))


def _wrk(testbed: Testbed, peer: Peer, *, connections: int, seconds: float) -> tuple[dict[str, float], float]:
    script = testbed.directory / "report.lua"
    script.write_text(_WRK_REPORT)
    host, port = peer.target("http")
    command = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{seconds:g}s"]
    before = accounting.cpu_s(peer.processes().values())
    output = _run(testbed, peer, [*command, "--script", str(script), f"http://{host}:{port}/"])
    cpu_s = accounting.cpu_s(peer.processes().values()) - before
    report: dict[str, float] = json.loads(output.partition("REPORT ")[2].splitlines()[0])
    require(peer, "wrk", report["requests"] > 0 and report["errors"] == 0, report)
    return report, cpu_s


def _run(testbed: Testbed, peer: Peer, command: Sequence[str]) -> str:
    done = subprocess.run(
        testbed.inside(peer.client, command),
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=120,
    )
    require(peer, command[0], done.returncode == 0, done.stderr.strip() or done.stdout.strip())
    return done.stdout
