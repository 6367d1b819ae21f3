"""A peer of shared tunnels of the tests' own: both roles, with real sockets, and able to break every rule.

Written from the protocol (docs/tunnel-protocol.md, section 6) and not from the
agent's code, so that the two can disagree.  Nothing here runs by itself: the
test's thread drives every tunnel, and while a method of one waits, all that
comes in this tunnel is taken in.  So a peer and the agent never wait for each other.

    tunnel = SharedTunnel.to(pod, server.ipv4, shared_context(leaf, root))        the source
    stream = tunnel.open(destination=(server.ipv4, 8080), source=(pod.ipv4, 40000))
    stream.send(b"hello")
    assert stream.receive(5) == b"hello"

    destination = SharedDestination(pod); destination.context = shared_context(leaf, root, server_side=True)
    tunnel = destination.shared()                                                 the destination
    stream = tunnel.accept()
    stream.answer()

What the other end sends is held against the protocol as it comes: more DATA
than we gave credit for, or a frame that its state does not allow, fails the test.
"""

import os
import socket
import ssl
import struct
from collections import deque
from collections.abc import Callable, Sequence
from queue import Queue
from typing import Any, Final

import msgpack
from cryptography import x509

from tests.certificates import Leaf
from tests.mesh_builder import DEADLINE_S, Pod
from tests.shared_line import Line, LineFrame
from tests.shared_stream import ATTACH, MAX_OWN_DATA, SHARE, Stream, stream_frame
from tests.tunnel_peer import (
    DATA,
    EOF,
    OPEN,
    TUNNEL_PORT,
    VERDICT,
    Address,
    FakeAgent,
    frame,
    open_payload,
    peer_context,
    verdict_payload,
)

BOTH: Final = ("ringfence/2", "ringfence/1")


def shared_context(
    leaf: Leaf, root: x509.Certificate, *, server_side: bool = False, alpn: Sequence[str] = BOTH
) -> ssl.SSLContext:
    """A context that presents ``leaf`` and offers or selects by ``alpn``."""
    made = peer_context(leaf, root, server_side=server_side)
    made.set_alpn_protocols(list(alpn))
    return made


class SharedTunnel:
    """One end of a shared tunnel; owns its connection."""

    def __init__(self, line: Line, token: bytes, *, is_source: bool) -> None:
        self.line = line
        self.token = token
        self.streams: dict[int, Stream] = {}
        self.is_ended = False
        self._is_source = is_source
        self._opened: deque[Stream] = deque()
        line.number_frames()

    @staticmethod
    def to(pod: Pod, ip: str, context: ssl.SSLContext, *, token: bytes | None = None) -> "SharedTunnel":
        """Dial from inside ``pod`` and share, as a source."""
        line = dial_line(pod, ip, context)
        assert line.protocol == "ringfence/2"
        token = os.urandom(16) if token is None else token
        line.send(SHARE, token)
        return SharedTunnel(line, token, is_source=True)

    # -- a source's ---------------------------------------------------------------

    def begin(self, *, destination: Address, source: Address, number: int | None = None, **changes: Any) -> Stream:
        """Send an OPEN, and do not wait for the verdict."""
        stream = Stream(self, max(self.streams, default=0) + 1 if number is None else number)
        self.streams[stream.number] = stream
        self.send(OPEN, stream.number, open_payload(destination=destination, source=source, **changes))
        return stream

    def open(self, *, destination: Address, source: Address, **changes: Any) -> Stream:
        """Open a stream; its verdict is there."""
        stream = self.begin(destination=destination, source=source, **changes)
        self.take_in(lambda: stream.verdict is not None or stream.is_over, "a verdict")
        return stream

    # -- a destination's ------------------------------------------------------------

    def accept(self) -> Stream:
        """The next stream that the source opens."""
        self.take_in(lambda: bool(self._opened) or self.is_ended, "an OPEN")
        assert self._opened, "the tunnel ended without another OPEN"
        return self._opened.popleft()

    # -- both ends' -----------------------------------------------------------------

    def send(self, kind: int, stream: int, payload: bytes = b"", *, length: int | None = None) -> None:
        self.line.send_raw(stream_frame(kind, stream, payload, length=length))

    def send_raw(self, data: bytes) -> None:
        """Send bytes inside TLS, whatever they are."""
        self.line.send_raw(data)

    def take_in(self, enough: Callable[[], Any], what: str, *, within_s: float = DEADLINE_S) -> None:
        """Take in frames until ``enough``; fails when the deadline is over before."""
        while not enough():
            got = self.line.read(what, within_s=within_s)
            if got is None:
                self.is_ended = True
                return
            self._take(got)

    def settle(self, quiet_s: float) -> None:
        """Take in frames until none has come for so long."""
        while (got := self.line.read_or_quiet(quiet_s)) is not None:
            self._take(got)

    def wait_for_the_end(self) -> None:
        """Wait until the other end has closed; streams take in what comes before."""
        self.take_in(lambda: self.is_ended, "the end of the tunnel")

    def close(self) -> None:
        self.line.close()

    def __enter__(self) -> "SharedTunnel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, got: LineFrame) -> None:
        if got.kind == OPEN:
            assert not self._is_source, "an OPEN from the destination"
            assert got.stream > max(self.streams, default=0), "stream numbers ascend"
            stream = Stream(self, got.stream, asked=msgpack.unpackb(got.payload))
            self.streams[got.stream] = stream
            self._opened.append(stream)
            return
        assert got.stream in self.streams, f"frame {got.kind} for stream {got.stream}, which was never opened"
        stream = self.streams[got.stream]
        if not stream.aborted:  # else it crossed our RESET
            stream.take(got.kind, got.payload)


class SharedDestination:
    """A destination in a pod that no agent serves: hands every tunnel, with TLS done, to the test."""

    def __init__(self, pod: Pod) -> None:
        self.context: ssl.SSLContext | None = None
        self.agent = FakeAgent(pod)
        self.agent.handle = self._handle
        self.hellos: list[bytes] = []
        """The first bytes of every connection: its ClientHello."""
        self.is_refusing = False
        """Whether new connections are closed before their handshake."""
        self.lines: list[Line] = []
        self._arrived: Queue[Line] = Queue()

    def line(self) -> Line:
        """The next tunnel that the source dials."""
        return self._arrived.get(timeout=DEADLINE_S)

    def shared(self) -> SharedTunnel:
        """The next tunnel, which has to be a shared one."""
        line = self.line()
        assert line.protocol == "ringfence/2"
        got = line.read("SHARE")
        assert got is not None
        assert (got.kind, len(got.payload)) == (SHARE, 16), got
        return SharedTunnel(line, got.payload, is_source=False)

    def attached(self, stream: Stream, line: Line | None = None, *, answer: str = "ok") -> Line:
        """The tunnel that is to be ``stream``'s own: ``line``, or the next that the source dials."""
        line = line or self.line()
        assert line.protocol == "ringfence/2"
        assert line.read("ATTACH") == LineFrame(ATTACH, 0, attach_payload(stream.tunnel.token, stream.number))
        line.send(VERDICT, verdict_payload(answer))
        return line

    def forget(self) -> None:
        """End every tunnel, and remember none."""
        for line in self.lines:
            line.close()
        self.lines.clear()
        self.hellos.clear()
        self.is_refusing = False
        self._arrived = Queue()

    def close(self) -> None:
        self.agent.close()
        self.forget()

    def _handle(self, connection: socket.socket) -> None:
        if self.is_refusing:
            return
        assert self.context is not None
        self.hellos.append(connection.recv(4096, socket.MSG_PEEK))
        line = Line(self.context.wrap_socket(connection, server_side=True))
        self.lines.append(line)
        self._arrived.put(line)


def attach(line: Line, payload: bytes) -> str:
    """Ask for ``line`` to be a stream's own, as a source; returns the verdict's reason."""
    line.send(ATTACH, payload)
    got = line.read("the verdict of ATTACH")
    assert got is not None, f"the tunnel ended without a verdict: {line.ending}"
    assert got.kind == VERDICT, got
    return str(msgpack.unpackb(got.payload)["reason"])


def exchange(line: Line, data: bytes) -> bytes:
    """Send ``data`` and EOF in an own tunnel whose connection is open; returns what comes until the other's EOF."""
    for start in range(0, len(data), MAX_OWN_DATA):
        part = data[start : start + MAX_OWN_DATA]
        line.queue(frame(DATA, part))
    line.queue(frame(EOF))
    received = bytearray()
    while (got := line.read("DATA or EOF")) is not None:
        if got.kind == EOF:
            line.send_raw(b"")  # what is left of ours
            return bytes(received)
        assert got.kind == DATA, got
        assert 1 <= len(got.payload) <= MAX_OWN_DATA
        received += got.payload
    raise AssertionError(f"the tunnel ended after {len(received)} bytes: {line.ending}")


def attach_payload(token: bytes, stream: int) -> bytes:
    return token + struct.pack(">I", stream)


def dial_line(pod: Pod, ip: str, context: ssl.SSLContext, *, name: str | None = None) -> Line:
    """Open a tunnel from inside ``pod``, with a server name; raises OSError as ``ssl`` does."""
    plain = pod.connect(ip, TUNNEL_PORT)
    try:
        return Line(context.wrap_socket(plain, server_hostname=name))
    except BaseException:
        plain.close()
        raise
