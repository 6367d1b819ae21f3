"""Join real sockets by a real relay loop in a thread of its own, with the test at both free ends.

    app <-TCP-> plain | pair in the relay loop | tunnel <-TLS over TCP-> peer

``app`` plays the application, ``peer`` the other agent; both are blocking with
a timeout.  TCP over the loopback, not socketpair(2), because resets matter.
"""

import queue
import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from node_agent.frames import HEADER, HEADER_BYTES, LENGTH_MASK, TYPE_SHIFT, FrameType
from node_agent.relay import Ending, Meter, Outcome
from node_agent.relay.loop import RelayLoop
from node_agent.relay.plain_pair import PlainPair
from node_agent.relay.tunnel_pair import TunnelPair
from tests.certificates import WEB, make_root
from tests.handshakes import context

DEADLINE_S: Final = 60.0
QUIET_S: Final = 0.2
"""How long nothing must move before a test believes that it is stuck."""
COMPLETE: Final = Outcome(ending=Ending.COMPLETE)
SMALL_BUFFER_BYTES: Final = 16 * 1024


def tcp_pair(*, buffer_bytes: int | None = None) -> tuple[socket.socket, socket.socket]:
    """Two connected TCP sockets with a timeout; ``buffer_bytes`` makes their kernel buffers small."""
    with socket.socket() as listener:
        if buffer_bytes is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        one = socket.socket()
        if buffer_bytes is not None:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
        one.connect(listener.getsockname())
        other, _ = listener.accept()
    if buffer_bytes is not None:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
    for sock in (one, other):
        sock.settimeout(DEADLINE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return one, other


class TlsPairs:
    """Makes both ends of a tunnel, with the agents' own kind of TLS context."""

    def __init__(self) -> None:
        root = make_root()
        own = root.intermediate().leaf(WEB).own
        self._client = context(own, root.certificate, server_side=False)
        self._server = context(own, root.certificate, server_side=True)

    def make(self, *, buffer_bytes: int | None = None) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
        """Return the source's and the destination's end, shaken hands, non-blocking."""
        one, other = tcp_pair(buffer_bytes=buffer_bytes)
        one.setblocking(False)
        other.setblocking(False)
        client = self._client.wrap_socket(one, do_handshake_on_connect=False, suppress_ragged_eofs=False)
        server = self._server.wrap_socket(
            other, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=False
        )
        waiting = [client, server]
        while waiting:
            for sock in list(waiting):
                try:
                    sock.do_handshake()
                    waiting.remove(sock)
                except ssl.SSLWantReadError:
                    pass
        return client, server


def frame(kind: FrameType | int, payload: bytes = b"") -> bytes:
    return HEADER.pack(int(kind) << TYPE_SHIFT | len(payload)) + payload


def data(payload: bytes) -> bytes:
    return frame(FrameType.DATA, payload)


EOF: Final = frame(FrameType.EOF)
RESET: Final = frame(FrameType.RESET)


class Peer:
    """The other agent's end of a tunnel: speaks frames, one write a TLS record (up to 16 KiB)."""

    def __init__(self, tls: ssl.SSLSocket) -> None:
        tls.settimeout(DEADLINE_S)
        self.tls = tls
        self._received = b""

    def send(self, raw: bytes) -> None:
        self.tls.sendall(raw)

    def read_frame(self) -> tuple[int, bytes]:
        """Return type and payload of the next frame; raises OSError when the tunnel ends."""
        (word,) = HEADER.unpack(self._read(HEADER_BYTES))
        return word >> TYPE_SHIFT, self._read(word & LENGTH_MASK)

    def read_stream(self) -> tuple[bytes, int]:
        """Read DATA until another frame; returns the bytes and that frame's type."""
        parts: list[bytes] = []
        while True:
            kind, payload = self.read_frame()
            if kind != FrameType.DATA:
                assert not payload
                return b"".join(parts), kind
            assert payload
            parts.append(payload)

    def read_end(self) -> None:
        """The tunnel is closed, in whatever way, with nothing more in it."""
        try:
            rest = self.tls.recv(1)
        except OSError as error:
            assert not isinstance(error, TimeoutError)
            rest = b""
        assert rest == b""

    def _read(self, size: int) -> bytes:
        while len(self._received) < size:
            more = self.tls.recv(max(65536, size))
            if not more:
                raise ConnectionError("the tunnel was closed")
            self._received += more
        taken, self._received = self._received[:size], self._received[size:]
        return taken


class Finish:
    """Receives a pair's ending; ``on_done`` of a second ending would be a bug and is kept."""

    def __init__(self) -> None:
        self._outcomes: queue.Queue[Outcome] = queue.Queue()

    def __call__(self, outcome: Outcome) -> None:
        self._outcomes.put(outcome)

    def wait(self) -> Outcome:
        return self._outcomes.get(timeout=DEADLINE_S)

    @property
    def is_empty(self) -> bool:
        return self._outcomes.empty()


@dataclass(slots=True)
class JoinedTunnel:
    app: socket.socket
    peer: Peer
    pair: TunnelPair
    finish: Finish
    tunnel: ssl.SSLSocket


@dataclass(slots=True)
class JoinedPlain:
    first: socket.socket
    second: socket.socket
    pair: PlainPair
    finish: Finish


class RelayBench:
    """One relay loop and everything that a test hung on it."""

    def __init__(self, pairs: TlsPairs) -> None:
        self.crashes: list[BaseException] = []
        self.loop = RelayLoop()
        self._stopping = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self.pairs = pairs
        self.sockets: list[socket.socket] = []

    def _serve(self) -> None:
        try:
            while not self._stopping:
                self.loop.serve(60)
        except BaseException as error:  # shown by close
            self.crashes.append(error)

    def _stop(self) -> None:
        self._stopping = True
        self.loop.interrupt()

    def tunnel(
        self,
        *,
        buffer_bytes: int | None = None,
        start: bool = True,
        source_side: bool = True,
        meter: Meter | None = None,
    ) -> JoinedTunnel:
        """Join an application's socket and a tunnel; ``source_side``: the agent that dialled the tunnel."""
        app, plain = tcp_pair(buffer_bytes=buffer_bytes)
        client, server = self.pairs.make(buffer_bytes=buffer_bytes)
        ours, theirs = (client, server) if source_side else (server, client)
        plain.setblocking(False)
        self.sockets += [app, plain, ours, theirs]
        finish = Finish()
        pair = TunnelPair(loop=self.loop, plain=plain, tunnel=ours, on_done=finish, meter=meter)
        if start:
            self.loop.call_soon(pair.start)
        else:
            self.sockets.append(plain)
        return JoinedTunnel(app=app, peer=Peer(theirs), pair=pair, finish=finish, tunnel=ours)

    def plain(self, *, buffer_bytes: int | None = None, meter: Meter | None = None) -> JoinedPlain:
        """Join two TCP connections."""
        first, ours_first = tcp_pair(buffer_bytes=buffer_bytes)
        second, ours_second = tcp_pair(buffer_bytes=buffer_bytes)
        ours_first.setblocking(False)
        ours_second.setblocking(False)
        self.sockets += [first, ours_first, second, ours_second]
        finish = Finish()
        pair = PlainPair(loop=self.loop, first=ours_first, second=ours_second, on_done=finish, meter=meter)
        self.loop.call_soon(pair.start)
        return JoinedPlain(first=first, second=second, pair=pair, finish=finish)

    def path(self, *, buffer_bytes: int | None = None, meter: Meter | None = None) -> tuple[JoinedTunnel, JoinedTunnel]:
        """Both agents: application - pair - TLS - pair - application.  Their ``peer`` is each other's tunnel.

        ``meter`` is the first one's, the source's.
        """
        app_one, plain_one = tcp_pair(buffer_bytes=buffer_bytes)
        app_two, plain_two = tcp_pair(buffer_bytes=buffer_bytes)
        client, server = self.pairs.make(buffer_bytes=buffer_bytes)
        joined: list[tuple[socket.socket, ssl.SSLSocket, TunnelPair, Finish, ssl.SSLSocket]] = []
        for app, plain, ours, theirs in (
            (app_one, plain_one, client, server),
            (app_two, plain_two, server, client),
        ):
            plain.setblocking(False)
            self.sockets += [app, plain, ours]
            finish = Finish()
            pair = TunnelPair(loop=self.loop, plain=plain, tunnel=ours, on_done=finish, meter=None if joined else meter)
            joined.append((app, theirs, pair, finish, ours))
        made = [
            JoinedTunnel(app=app, peer=_no_peer(theirs), pair=pair, finish=finish, tunnel=ours)
            for app, theirs, pair, finish, ours in joined
        ]
        for each in made:
            self.loop.call_soon(each.pair.start)
        return made[0], made[1]

    def close(self) -> None:
        self.loop.call_soon(self._stop)
        self._thread.join(DEADLINE_S)
        self.loop.close()
        for sock in self.sockets:
            sock.close()
        assert self.crashes == []


def _no_peer(tls: ssl.SSLSocket) -> Peer:
    """A Peer that nobody uses: the socket is the other pair's, which must not be touched."""
    peer = Peer.__new__(Peer)
    peer.tls = tls
    return peer


def random_chunks(rng: random.Random, whole: bytes, *, most_bytes: int) -> list[bytes]:
    """Cut ``whole`` into chunks of all sizes, single bytes and large ones among them."""
    chunks = []
    at = 0
    while at < len(whole):
        size = rng.randint(1, rng.choice([1, 100, 20_000, most_bytes, most_bytes]))
        chunks.append(whole[at : at + size])
        at += size
    return chunks


def send_until_stuck(send: Callable[[bytes], int], chunk: bytes, *, most_bytes: int) -> int:
    """Send ``chunk`` again and again on a non-blocking socket until nothing moves for ``QUIET_S``; returns how much."""
    sent = 0
    last = time.monotonic()
    while sent < most_bytes and time.monotonic() - last < QUIET_S:
        try:
            sent += send(chunk)
        except (BlockingIOError, ssl.SSLWantWriteError):
            time.sleep(0.005)
            continue
        last = time.monotonic()
    return sent


def read_all(sock: socket.socket) -> bytes:
    """Read until a clean end."""
    parts = []
    while more := sock.recv(1 << 20):
        parts.append(more)
    return b"".join(parts)


def was_reset(sock: socket.socket) -> bool:
    """Read to the end: True if it was a reset, False if it was a clean end."""
    try:
        while sock.recv(1 << 20):
            pass
    except ConnectionResetError:
        return True
    return False


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def end_up(joined: JoinedTunnel, expected: bytes = b"") -> None:
    """The application ends its direction; the peer hears ``expected`` and EOF."""
    joined.app.shutdown(socket.SHUT_WR)
    assert joined.peer.read_stream() == (expected, FrameType.EOF)
