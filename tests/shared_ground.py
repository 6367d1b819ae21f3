"""The stage of the tests of shared tunnels: a peer that the CA vouches for, and programs that end in every way."""

import hashlib
import random
import socket
import ssl
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tests.mesh_builder import DEADLINE_S, read_all, wait_for
from tests.mesh_stage import PORT, Stage
from tests.shared_line import Line
from tests.shared_name import attach_name
from tests.shared_peer import BOTH, SharedTunnel, dial_line, shared_context
from tests.shared_stream import Stream

ANSWERS: Final = 8081
"""Reads to the end, then sends all of it back."""
SPEAKS_FIRST: Final = 8082
"""Sends a word, shuts its writing side, then hears to the end."""
RESETS: Final = 8083
"""Resets behind what it hears first."""
STOPS: Final = 8084
"""Reads only when the test lets it; until then the kernel keeps some megabytes for it."""

_FIRST_PORT: Final = 40_000
DENY: Final = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: not-the-peer, namespace: default}}
spec:
  action: DENY
  rules:
  - from: [{{source: {{principals: [cluster.local/ns/default/sa/peer]}}}}]
    to: [{{operation: {{ports: ["{port}"]}}}}]
"""


def some_bytes(size: int, seed: int) -> bytes:
    """Bytes that can not be mistaken for others."""
    return random.Random(seed).randbytes(size)


def digest(data: bytes | bytearray) -> str:
    """What to compare of megabytes: a difference should not print them."""
    return f"{len(data)} bytes, {hashlib.sha256(data).hexdigest()}"


@dataclass
class SharedGround:
    """Who is there, and what the programs of the server have done."""

    stage: Stage
    heard: list[bytes] = field(default_factory=list)
    """By those that read to the end, each connection."""
    may_read: threading.Event = field(default_factory=threading.Event)
    name: str | None = None
    """The server name of own tunnels: that of the shared tunnel that was made last."""
    _dialled: list[Line] = field(default_factory=list)

    def __post_init__(self) -> None:
        server = self.stage.server
        server.serve(ANSWERS, self._answer)
        server.serve(SPEAKS_FIRST, self._speak_first)
        server.serve(RESETS, self._reset)
        server.serve(STOPS, self._stop)

    def begin_test(self) -> None:
        self.stage.begin_test()
        self.heard.clear()
        self.may_read.clear()
        self.name = None

    def end_test(self) -> None:
        """Leave no tunnel, and no program that waits."""
        for line in self._dialled:
            line.close()
        self._dialled.clear()
        self.may_read.set()

    # -- the peer ---------------------------------------------------------------------

    def context(self, account: str = "peer", *, alpn: Sequence[str] = BOTH) -> ssl.SSLContext:
        return shared_context(self.stage.leaf(account), self.stage.root, alpn=alpn)

    def share(self) -> SharedTunnel:
        """A shared tunnel from the peer to the server."""
        made = SharedTunnel.to(self.stage.attacker, self.stage.server.ipv4, self.context())
        self.name = attach_name(made.token)
        return made

    def dial(self, account: str = "peer", *, ip: str | None = None, alpn: Sequence[str] = BOTH) -> Line:
        """A tunnel of which nothing is decided yet; closed after the test."""
        context = self.context(account, alpn=alpn)
        line = dial_line(self.stage.attacker, ip or self.stage.server.ipv4, context, name=self.name)
        self._dialled.append(line)
        return line

    def addresses(self, number: int, port: int = PORT) -> dict[str, tuple[str, int]]:
        """Where the OPEN of stream ``number`` is to go, and where it comes from."""
        return {
            "destination": (self.stage.server.ipv4, port),
            "source": (self.stage.attacker.ipv4, _FIRST_PORT + number),
        }

    def begin(self, tunnel: SharedTunnel, port: int = PORT) -> Stream:
        """Ask for a stream to one of the programs."""
        where = self.addresses(max(tunnel.streams, default=0) + 1, port)
        return tunnel.begin(destination=where["destination"], source=where["source"])

    def open(self, tunnel: SharedTunnel, port: int = PORT) -> Stream:
        """A stream to one of the programs; fails if it is refused."""
        stream = tunnel.open(**self.addresses(max(tunnel.streams, default=0) + 1, port))
        assert stream.reason == "ok", stream
        return stream

    def echo(self, stream: Stream, data: bytes) -> None:
        """The program at the other end of ``stream`` lives."""
        stream.send(data)
        assert stream.receive(len(data)) == data

    # -- what is known of it afterwards --------------------------------------------------

    def record(self, stream: Stream) -> dict[str, Any]:
        """Wait for the access record of ``stream`` and return it."""
        return self.stage.mesh.record(2, source_address=f"{self.stage.attacker.ipv4}:{_FIRST_PORT + stream.number}")

    def ended(self, stream: Stream, reason: str, flags: str) -> dict[str, Any]:
        """Assert why ``stream`` ended, and what every record of the peer has."""
        record = self.record(stream)
        assert (record["close_reason"], record["response_flags"]) == (reason, flags), record
        assert record["direction"] == "inbound"
        assert record["connection_security_policy"] == "mutual_tls"
        assert record["source_identity"] == f"spiffe://{self.stage.signer.trust_domain}/ns/default/sa/peer"
        assert record["destination_workload"] == self.stage.server.workload
        return record

    def wait_for_endings(self, *endings: str) -> None:
        """How the connections of the echo program have ended so far, in whichever order."""
        application = self.stage.application
        wait_for("the program to see the end", lambda: len(application.endings) >= len(endings))
        assert sorted(application.endings) == sorted(endings)

    # -- programs --------------------------------------------------------------------------

    def _answer(self, connection: socket.socket, _peer: str) -> None:
        data = read_all(connection)
        self.heard.append(data)
        connection.sendall(data)

    def _speak_first(self, connection: socket.socket, _peer: str) -> None:
        connection.sendall(b"a word")
        connection.shutdown(socket.SHUT_WR)
        self.heard.append(read_all(connection))

    def _reset(self, connection: socket.socket, _peer: str) -> None:
        connection.recv(65536)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _stop(self, connection: socket.socket, _peer: str) -> None:
        assert self.may_read.wait(DEADLINE_S)
        self.heard.append(read_all(connection))
