"""Fakes for what moves the bytes of shared tunnels: the tunnel, what carries it, and its streams."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import trio

from node_agent.errors import CloseReason
from node_agent.frames import HEADER_BYTES, Verdict, encode_verdict
from node_agent.tunnel import TunnelLost

OK: Final = encode_verdict(Verdict(reason=CloseReason.OK))[HEADER_BYTES:]


@dataclass(eq=False)
class FakeStream:
    """Remembers what was done with it."""

    carrier: "FakeCarrier"
    stream_id: int
    is_cut: bool = False
    is_forgotten: bool = False
    moves: list[object] = field(default_factory=list)
    asked_again_at: list[float] = field(default_factory=list)

    @property
    def is_carrying(self) -> bool:
        return self in self.carrier.streams and not self.moves

    @property
    def has_moved(self) -> bool:
        return bool(self.moves)

    def move(self, own: object) -> None:
        self.moves.append(own)

    def may_ask_again(self) -> None:
        self.asked_again_at.append(trio.current_time())

    def forget(self) -> None:
        self.is_forgotten = True
        self.carrier.streams.remove(self)

    def cut(self, _reason: None) -> None:
        self.is_cut = True
        self.carrier.streams.remove(self)


@dataclass(eq=False)
class FakeCarrier:
    """Answers each stream with ``answer``; None: the tunnel has ended before."""

    on_end: Callable[[], None]
    answer: bytes | None = OK
    delay_s: float = 0.01
    streams: list[FakeStream] = field(default_factory=list)
    opened_count: int = 0
    most: int = 0
    is_over: bool = False
    was_reset: bool = False
    fault: str | None = None

    async def ask(self, _payload: bytes, timeout_s: float) -> tuple[FakeStream, bytes | None]:
        assert not self.is_over
        self.opened_count += 1
        stream = FakeStream(self, self.opened_count)
        self.streams.append(stream)
        self.most = max(self.most, len(self.streams))
        try:
            with trio.fail_after(timeout_s):
                await trio.sleep(self.delay_s)
        except (trio.Cancelled, trio.TooSlowError):
            stream.cut(None)
            raise
        return stream, self.answer

    def close(self, *, reset: bool = False) -> None:
        if not self.is_over:
            self.is_over = True
            self.was_reset = reset
            self.streams.clear()
            self.on_end()


class FakeTunnel:
    """One that can be shared, or not, by its ``protocol``."""

    def __init__(self, protocol: str, not_after: datetime) -> None:
        self.protocol = protocol
        self.not_after = not_after
        self.sent: list[bytes] = []
        self.is_closed = False
        self.breaks = False

    async def send(self, sent: bytes) -> None:
        if self.breaks:
            raise TunnelLost("it broke")
        self.sent.append(sent)

    def lend(self) -> "FakeTunnel":
        return self

    def close(self) -> None:
        self.is_closed = True
