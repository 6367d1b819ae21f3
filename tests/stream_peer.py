"""An agent's end of a shared tunnel, with the test as the other end: every frame in its hands."""

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from node_agent.frames import Open, decode_open
from node_agent.relay.shared_tunnel import SharedTunnel
from node_agent.relay.stream import Stream
from node_agent.stream_frames import STREAM_HEADER, StreamFrameType
from tests.relay_builder import DEADLINE_S, SMALL_BUFFER_BYTES, Finish, RelayBench, tcp_pair
from tests.stream_builder import ACCEPTED, in_loop, open_payload


def frame(kind: int, stream_id: int, payload: bytes = b"", *, length: int | None = None) -> bytes:
    return STREAM_HEADER.pack(kind << 24 | (len(payload) if length is None else length), stream_id) + payload


def credit(stream_id: int, size: int) -> bytes:
    return frame(StreamFrameType.CREDIT, stream_id, size.to_bytes(4, "big"))


def data(stream_id: int, size: int) -> bytes:
    """``size`` bytes of DATA, in frames that any receiver takes."""
    return b"".join(
        frame(StreamFrameType.DATA, stream_id, b"x" * min(16_000, size - start)) for start in range(0, size, 16_000)
    )


@dataclass(slots=True)
class End:
    """The agent's end of one stream, and its application."""

    stream: Stream
    app: socket.socket
    plain: socket.socket
    finish: Finish = field(default_factory=Finish)
    wishes: list[None] = field(default_factory=list)


class Agent:
    """An agent's end of a shared tunnel, and the peer's, which is the test's."""

    def __init__(self, bench: RelayBench, *, source: bool, buffer_bytes: int | None = None) -> None:
        client, server = bench.pairs.make(buffer_bytes=buffer_bytes)
        ours, self.tls = (client, server) if source else (server, client)
        self.tls.settimeout(DEADLINE_S)
        bench.sockets += [client, server]
        self.bench = bench
        self.ends: list[str] = []
        self.opened: list[tuple[Stream, Open]] = []
        self.shared = SharedTunnel(
            loop=bench.loop,
            tunnel=ours,
            on_open=None if source else lambda stream, message: self.opened.append((stream, message)),
            on_end=lambda: self.ends.append("over"),
        )
        in_loop(bench, self.shared.start)
        self._received = b""

    def send(self, *frames: bytes) -> None:
        self.tls.sendall(b"".join(frames))

    def read(self) -> tuple[int, int, bytes]:
        """Type, stream and payload of the next frame."""
        word, stream_id = STREAM_HEADER.unpack(self._take(8))
        return word >> 24, stream_id, self._take(word & 0xFFFFFF)

    def _take(self, size: int) -> bytes:
        while len(self._received) < size:
            more = self.tls.recv(65536)
            assert more, "the tunnel was closed"
            self._received += more
        taken, self._received = self._received[:size], self._received[size:]
        return taken

    def accepted(self, *, start: bool = True) -> End:
        """A stream that is open, if it is started here."""
        app, plain = tcp_pair(buffer_bytes=SMALL_BUFFER_BYTES)
        plain.setblocking(False)
        self.bench.sockets += [app, plain]
        number = self.shared.opened_count + 1
        if self.shared.is_source:
            verdicts: list[bytes | None] = []
            stream = in_loop(self.bench, lambda: self.shared.open(open_payload(number)))
            stream.on_verdict = verdicts.append
            assert self.read() == (StreamFrameType.OPEN, number, open_payload(number))
            self.send(frame(StreamFrameType.VERDICT, number, ACCEPTED))
            wait_until(lambda: verdicts == [ACCEPTED])
        else:
            self.send(frame(StreamFrameType.OPEN, number, open_payload(number)))
            wait_until(lambda: len(self.opened) > 0)
            stream, message = self.opened.pop()
            assert message == decode_open(open_payload(number))
            in_loop(self.bench, lambda: stream.answer(ACCEPTED, is_refusal=False))
            assert self.read() == (StreamFrameType.VERDICT, number, ACCEPTED)
        end = End(stream, app, plain)
        if start:
            self.carry(end)
        return end

    def carry(self, end: End) -> None:
        """What the story does next."""

        def carry() -> None:
            end.stream.carry(end.plain, end.finish, lambda: end.wishes.append(None))
            end.stream.start()

        in_loop(self.bench, carry)

    def is_closed(self) -> bool:
        """Whether the agent closes the tunnel; reads all that it says before."""
        try:
            while self.tls.recv(65536):
                pass
        except TimeoutError:
            return False
        except OSError:
            pass
        return True


def wait_until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.001)
