"""How fast the authority issues: requests of 1, 10 and 200 identities over connections that stay open.

Measured from outside, through TLS and the real server process: each answer is
a certificate that was asked for with a request (PKCS #10) that was checked,
signed, judged against its profile, and on the disk before it was sent.  The
clients ask with the same requests again and again, which costs the authority as
much as new ones would, and them nothing.

Runs in a process of its own and prints one line of JSON.
"""

import argparse
import json
import socket
import ssl
import sys
import threading
import time
from typing import Final

from bench.authority import AuthorityProcess, end_in_order, workload
from bench.testbed import BenchError
from ca.csr import build_csr, new_key
from ca.messages import ALPN, Issued, SignRequest, SignWorkloads, parse_reply
from ca.tls import strict_context
from ca.wire import FrameDecoder, encode_frame

_BATCHES: Final = {1: 16, 10: 8, 200: 4}  # identities a request: connections that ask at the same time
_PODS: Final = 200
# No agent asks as these clients do; what is measured is the work, not the limits.
_SETTINGS: Final = "[limits]\nnode_requests_a_minute = 1000000\nnode_certificates_a_minute = 10000000\n"
_TIMEOUT_S: Final = 30.0


def main() -> None:
    """Measure and print."""
    end_in_order()
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one load")
    parser.add_argument("--database", help="the URL of an empty PostgreSQL database, instead of SQLite")
    options = parser.parse_args()
    figures: dict[str, float] = {}
    with AuthorityProcess(nodes=1, pods_a_node=_PODS, settings=_SETTINGS, database=options.database) as authority:
        for batch, connections in _BATCHES.items():
            load = _Load(authority, batch=batch, connections=connections)
            load.run(min(1.0, options.seconds / 3))  # warm
            before, cpu_s = authority.journalled(), authority.cpu_s()
            seconds = load.run(options.seconds)
            issued, cpu_s = authority.journalled() - before, authority.cpu_s() - cpu_s
            if issued != load.answered * batch or not issued:
                raise BenchError(f"{load.answered * batch} certificates came, and {issued} are in the journal")
            load.close()
            figures[f"batch_{batch}_svids_per_s"] = issued / seconds
            figures[f"batch_{batch}_cpu_s_per_1000"] = cpu_s / issued * 1000
            figures[f"batch_{batch}_p50_ms"] = load.percentile_ms(0.5)
            figures[f"batch_{batch}_p99_ms"] = load.percentile_ms(0.99)
    figures["slowest_svids_per_s"] = min(figures[f"batch_{batch}_svids_per_s"] for batch in _BATCHES)
    json.dump(figures, sys.stdout)


class _Load:
    """Clients that ask one request after the other, each on its own connection and thread."""

    def __init__(self, authority: AuthorityProcess, *, batch: int, connections: int) -> None:
        own = authority.node_credentials(0)
        context = strict_context(server_side=False, roots=authority.roots(), alpn=ALPN, own=own)
        requests = tuple(
            SignRequest(identity=workload(number), csr_der=build_csr(new_key(), workload(number)))
            for number in range(batch)
        )
        self._frame = encode_frame(SignWorkloads(requests=requests).to_wire())
        self._batch = batch
        self._streams = []
        for _ in range(connections):
            transport = socket.create_connection(("127.0.0.1", authority.port), timeout=_TIMEOUT_S)
            transport.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._streams.append(context.wrap_socket(transport))
        for stream in self._streams:
            self._require_issued(self._ask(stream))
        self._took_s: list[float] = []
        self.answered = 0

    def run(self, seconds: float) -> float:
        """Ask until ``seconds`` have passed; returns how long it took until the last answer."""
        self._took_s, self.answered = [], 0
        began = time.monotonic()
        threads = [threading.Thread(target=self._ask_until, args=(each, began + seconds)) for each in self._streams]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.answered = len(self._took_s)
        return time.monotonic() - began

    def close(self) -> None:
        """Hang up."""
        for stream in self._streams:
            stream.close()

    def percentile_ms(self, share: float) -> float:
        """Of the time from question to answer."""
        took = sorted(self._took_s)
        return took[min(int(len(took) * share), len(took) - 1)] * 1e3

    def _ask_until(self, stream: ssl.SSLSocket, end: float) -> None:
        least = self._batch * 300  # no leaf is smaller: a refusal would be
        while (now := time.monotonic()) < end:
            if len(self._ask(stream)) < least:
                return  # not counted as answered: the journal will not agree
            self._took_s.append(time.monotonic() - now)

    def _ask(self, stream: ssl.SSLSocket) -> bytes:
        stream.sendall(self._frame)
        answer = bytearray()
        while len(answer) < 4 or len(answer) < 4 + int.from_bytes(answer[:4], "big"):
            data = stream.recv(262_144)
            if not data:
                raise BenchError("the authority closed the connection")
            answer += data
        return bytes(answer)

    def _require_issued(self, frame: bytes) -> None:
        reply = parse_reply(FrameDecoder().feed(frame)[0])
        if not isinstance(reply, Issued) or any(item.error is not None for item in reply.certificates):
            raise BenchError(f"the authority refuses: {reply}")


if __name__ == "__main__":
    main()
