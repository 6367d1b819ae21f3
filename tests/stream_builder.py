"""Join applications by streams of one shared tunnel, both ends of which are in the one loop of a ``RelayBench``.

    app <-TCP-> stream | shared tunnel <-TLS over TCP-> shared tunnel | stream <-TCP-> app
                       \\----- tunnel of its own, when it was given one -----/

Everything that the agent's stories do with streams is done by the loop here,
which is where they are called in the agent, too.
"""

import queue
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, TypeVar

from node_agent.errors import CloseReason
from node_agent.frames import HEADER_BYTES, Open, Verdict, encode_open, encode_verdict
from node_agent.model import ObjectName, OriginalDestination, PeerAddress
from node_agent.relay import Outcome
from node_agent.relay.shared_tunnel import SharedTunnel
from node_agent.relay.stream import Stream
from tests.relay_builder import DEADLINE_S, Finish, RelayBench, tcp_pair

Own = Literal["never", "attach-first", "moved-first", "failing"]
"""What comes of a stream's wish for a tunnel of its own; "failing": it is told each time that there is none."""

ACCEPTED: Final = encode_verdict(Verdict(reason=CloseReason.OK))[HEADER_BYTES:]
_TRIES_AGAIN_S: Final = 0.005
_T = TypeVar("_T")


def open_payload(number: int) -> bytes:
    """The OPEN of a connection to port ``number``."""
    message = Open(
        destination=OriginalDestination("10.0.0.1", number),
        source=PeerAddress("10.0.0.2", 40000),
        workload=ObjectName("default", "cart"),
    )
    return encode_open(message)[HEADER_BYTES:]


def in_loop(bench: RelayBench, call: Callable[[], _T]) -> _T:
    """Run ``call`` in the loop's thread, and return what it returns."""
    answers: queue.Queue[_T] = queue.Queue()
    bench.loop.call_soon(lambda: answers.put(call()))
    return answers.get(timeout=DEADLINE_S)


@dataclass(slots=True)
class JoinedStream:
    """One end of a stream; ``pair`` as in ``JoinedTunnel``."""

    app: socket.socket
    pair: Stream
    finish: Finish


@dataclass(slots=True)
class _Joining:
    """A path that is being opened, and what was given to it later."""

    plains: tuple[socket.socket, socket.socket]
    finishes: tuple[Finish, Finish]
    own: Own
    source: Stream
    opened: queue.Queue[None]
    destination: Stream | None = None
    wishes: int = 0
    given: list[tuple[ssl.SSLSocket, ssl.SSLSocket]] = field(default_factory=list)
    back: list[Outcome | None] = field(default_factory=list)


class StreamPaths:
    """A shared tunnel, and the paths in it."""

    def __init__(self, bench: RelayBench, *, buffer_bytes: int | None = None) -> None:
        self.bench = bench
        self._buffer_bytes = buffer_bytes
        self._joining: dict[int, _Joining] = {}
        self.ended: list[str] = []
        self._sockets = bench.pairs.make(buffer_bytes=buffer_bytes)
        bench.sockets += self._sockets
        self.source, self.destination = in_loop(bench, self._share)

    def close(self) -> None:
        """End both ends in order, as the stories do."""
        in_loop(self.bench, self.source.close)
        in_loop(self.bench, self.destination.close)

    def _share(self) -> tuple[SharedTunnel, SharedTunnel]:
        loop = self.bench.loop
        client, server = self._sockets
        source = SharedTunnel(loop=loop, tunnel=client, on_open=None, on_end=lambda: self.ended.append("source"))
        destination = SharedTunnel(
            loop=loop, tunnel=server, on_open=self._accept, on_end=lambda: self.ended.append("destination")
        )
        source.start()
        destination.start()
        return source, destination

    def path(self, *, own: Own = "never", buffer_bytes: int | None = None) -> tuple[JoinedStream, JoinedStream]:
        """Application - stream - application: the source's end, and the destination's."""
        size = buffer_bytes or self._buffer_bytes
        (app_one, plain_one), (app_two, plain_two) = tcp_pair(buffer_bytes=size), tcp_pair(buffer_bytes=size)
        for plain in (plain_one, plain_two):
            plain.setblocking(False)
        self.bench.sockets += [app_one, plain_one, app_two, plain_two]
        joining = in_loop(self.bench, lambda: self._open((plain_one, plain_two), own))
        joining.opened.get(timeout=DEADLINE_S)
        assert joining.destination is not None
        return (
            JoinedStream(app=app_one, pair=joining.source, finish=joining.finishes[0]),
            JoinedStream(app=app_two, pair=joining.destination, finish=joining.finishes[1]),
        )

    def _open(self, plains: tuple[socket.socket, socket.socket], own: Own) -> _Joining:
        stream = self.source.open(open_payload(self.source.opened_count + 1))
        joining = _Joining(plains=plains, finishes=(Finish(), Finish()), own=own, source=stream, opened=queue.Queue())
        self._joining[stream.stream_id] = joining
        stream.on_verdict = lambda answer: self._go(joining, answer)
        return joining

    def _accept(self, stream: Stream, message: Open) -> None:
        assert message.destination.port == stream.stream_id
        joining = self._joining[stream.stream_id]
        joining.destination = stream
        stream.answer(ACCEPTED, is_refusal=False)
        stream.carry(joining.plains[1], joining.finishes[1], None)
        stream.start()

    def _go(self, joining: _Joining, answer: bytes | None) -> None:
        assert answer == ACCEPTED
        joining.source.carry(joining.plains[0], joining.finishes[0], lambda: self._wished(joining))
        joining.source.start()
        joining.opened.put(None)

    # -- tunnels of their own -----------------------------------------------------

    def _wished(self, joining: _Joining) -> None:
        joining.wishes += 1
        if joining.own == "failing":
            self.bench.loop.call_later(_TRIES_AGAIN_S, joining.source.may_ask_again)
        elif joining.own != "never":
            self._give(joining)

    def _give(self, joining: _Joining) -> None:
        source, destination = joining.source, joining.destination
        assert destination is not None
        if not (source.is_carrying and destination.is_carrying) or joining.given:
            return
        ours, theirs = self.bench.pairs.make(buffer_bytes=self._buffer_bytes)
        self.bench.sockets += [ours, theirs]
        joining.given.append((ours, theirs))
        if joining.own == "moved-first":
            source.move(ours)
            self.bench.loop.call_later(_TRIES_AGAIN_S, lambda: destination.attach(theirs, joining.back.append))
        else:
            destination.attach(theirs, joining.back.append)
            source.move(ours)

    def wishes_of(self, joined: JoinedStream) -> int:
        """How often the source's story was told that the stream is to have a tunnel of its own."""
        return self._joining[joined.pair.stream_id].wishes

    def back_of(self, joined: JoinedStream) -> list[Outcome | None]:
        """What the destination's story heard of the own tunnel that it gave."""
        return self._joining[joined.pair.stream_id].back

    def given_to(self, joined: JoinedStream) -> list[tuple[ssl.SSLSocket, ssl.SSLSocket]]:
        """Both ends of the own tunnels of a stream."""
        return self._joining[joined.pair.stream_id].given

    def move(self, joined: JoinedStream) -> None:
        """Give a stream a tunnel of its own, whether it wishes for one or not."""
        in_loop(self.bench, lambda: self.give(joined))

    def give(self, joined: JoinedStream) -> None:
        """The same, within the loop."""
        self._give(self._joining[joined.pair.stream_id])

    # -- trouble --------------------------------------------------------------------

    def lose(self) -> None:
        """The shared tunnel's TCP connection ends, without TLS's goodbye."""
        _break(self._sockets[0])

    def lose_own(self, joined: JoinedStream) -> None:
        """So does the tunnel that the stream was given, if any."""
        for ours, _ in self.given_to(joined):
            _break(ours)


def _break(tunnel: ssl.SSLSocket) -> None:
    try:
        socket.socket.shutdown(tunnel, socket.SHUT_RDWR)
    except OSError:
        pass  # closed already


def stream_path(
    bench: RelayBench, *, own: Own = "never", buffer_bytes: int | None = None
) -> tuple[JoinedStream, JoinedStream]:
    """Both ends of the only stream of a shared tunnel: as ``RelayBench.path``."""
    return StreamPaths(bench, buffer_bytes=buffer_bytes).path(own=own)
