"""One iperf3 test through a peer: its server, its client, what was received.

A new server for each test, because one whose client was cut stays busy.  Both
ways at once are two tests, not ``--bidir``: iperf3 tells its two connections
apart by the order in which they are accepted, and a proxy that connects them in
the other order makes both ends send on one connection and read from the other,
until nothing moves.
"""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from bench.peers import Peer, require
from bench.testbed import APPLICATIONS, Testbed

_SPARE_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """What arrived at the receiving end, of all connections of a test."""

    gigabytes: float
    gbit_per_s: float


class BulkLoad:
    """A test: its server is there for the length of a ``with``, its load from ``begin`` on, until its time is over.

    Args:
        application: which of the ports for bulk; two tests at once need two.
        options: of iperf3's client.
        seconds: rounded to whole ones, at least 1: iperf3 has no others.
    """

    def __init__(
        self, testbed: Testbed, peer: Peer, *, application: str = "bulk", options: Sequence[str] = (), seconds: float
    ) -> None:
        self._testbed, self._peer = testbed, peer
        self._port = APPLICATIONS[application]
        host, port = peer.target(application)
        self._seconds = max(1, round(seconds))
        address = ["--client", host, "--port", str(port)]
        self._client: subprocess.Popen[str] | None = None
        self._command = ["iperf3", *address, "--time", str(self._seconds), "--json", *options]

    def __enter__(self) -> Self:
        server = ["iperf3", "--server", "--one-off", "--port", str(self._port)]
        self._server = self._testbed.start(self._peer.server, server, ports=[self._port])
        return self

    def begin(self) -> None:
        """Start the client."""
        self._client = subprocess.Popen(
            self._testbed.inside(self._peer.client, self._command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            self._client.kill()
            self._client.communicate()
        self._testbed.stop(self._server)

    def received(self) -> Received:
        """Wait for the end of the test."""
        assert self._client is not None, "begin comes first"
        output, _ = self._client.communicate(timeout=self._seconds + _SPARE_S)
        try:
            result: dict[str, Any] = json.loads(output)
        except ValueError:
            result = {"error": output[-500:]}
        require(self._peer, "iperf3", "error" not in result, result.get("error"))
        total = result["end"]["sum_received"]
        require(self._peer, "iperf3", total["bytes"] > 0, "nothing was received")
        return Received(gigabytes=total["bytes"] / 1e9, gbit_per_s=total["bits_per_second"] / 1e9)
