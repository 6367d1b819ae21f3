"""One stream of a shared tunnel, as the tests' own peer knows it: its frames, its credit, and what may come for it."""

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgpack

from tests.tunnel_peer import DATA, EOF, RESET, VERDICT, verdict_payload

if TYPE_CHECKING:
    from tests.shared_peer import SharedTunnel

CREDIT: Final = 6
OWN: Final = 7
MOVED: Final = 8
SHARE: Final = 9
ATTACH: Final = 10

WINDOW: Final = 65_536
MAX_DATA: Final = 65_528
MAX_OWN_DATA: Final = 262_140


def stream_frame(kind: int, stream: int, payload: bytes = b"", *, length: int | None = None) -> bytes:
    """One frame of a shared tunnel; ``length`` lies about the payload's."""
    return struct.pack(">II", kind << 24 | (len(payload) if length is None else length), stream) + payload


def credit_payload(size: int) -> bytes:
    return struct.pack(">I", size)


@dataclass
class Stream:
    """One connection in a shared tunnel, as this end knows it."""

    tunnel: "SharedTunnel"
    number: int
    asked: dict[str, Any] | None = None
    """What the source's OPEN said; None at the source."""
    verdict: dict[str, Any] | None = None
    received: bytearray = field(default_factory=bytearray)
    credit: int = WINDOW
    """How much more this end may send."""
    given: int = WINDOW
    """How much more the other end may send."""
    generous: bool = True
    """Whether credit is given back as bytes come; else the test does it."""
    eof: bool = False
    reset: bytes | None = None
    owns: int = 0
    """How many OWN frames came."""
    moved: bool = False
    aborted: bool = False
    """Whether this end has reset it: what comes then has crossed."""

    @property
    def reason(self) -> str | None:
        """The verdict's reason; None before it."""
        return None if self.verdict is None else str(self.verdict["reason"])

    def send(self, data: bytes) -> None:
        """Send ``data`` within the credit, and wait for more of it if need be."""
        while data:
            self.tunnel.take_in(lambda: self.credit or self.is_over, f"credit for stream {self.number}")
            assert not self.is_over, f"stream {self.number} is over: {self}"
            part, data = data[: min(MAX_DATA, self.credit)], data[min(MAX_DATA, self.credit) :]
            self.credit -= len(part)
            self.tunnel.send(DATA, self.number, part)

    def fill(self, data: bytes) -> int:
        """Send of ``data`` what the credit allows now; returns how much that was."""
        size = min(len(data), self.credit)
        self.send(data[:size])
        return size

    def finish(self) -> None:
        self.tunnel.send(EOF, self.number)

    def abort(self, why: bytes = b"") -> None:
        self.aborted = True
        self.tunnel.send(RESET, self.number, why)

    def move(self) -> None:
        """Say that nothing more comes here."""
        self.generous = False  # MOVED is the last frame, also before a CREDIT
        self.tunnel.send(MOVED, self.number)

    def wait_until_moved(self) -> None:
        """Wait for the other end's MOVED."""
        self.tunnel.take_in(lambda: self.moved or self.is_over, f"MOVED of stream {self.number}")
        assert self.moved, self

    def give(self, size: int) -> None:
        self.given += size
        self.tunnel.send(CREDIT, self.number, credit_payload(size))

    def answer(self, reason: str = "ok", detail: str = "") -> None:
        self.verdict = {"reason": reason}
        self.tunnel.send(VERDICT, self.number, verdict_payload(reason, detail))

    def receive(self, size: int) -> bytes:
        """The next ``size`` bytes, taken away from ``received``."""
        self.tunnel.take_in(lambda: len(self.received) >= size or self.is_over or self.eof, f"{size} bytes")
        assert len(self.received) >= size, self
        data = bytes(self.received[:size])
        del self.received[:size]
        return data

    def wait_for_end(self) -> bytes:
        """Wait for the other end's EOF; returns what came before it."""
        self.tunnel.take_in(lambda: self.eof or self.is_over, f"the EOF of stream {self.number}")
        assert self.eof, self
        return bytes(self.received)

    def wait_for_reset(self) -> bytes:
        """Wait for a RESET; returns why."""
        self.tunnel.take_in(lambda: self.reset is not None or self.tunnel.is_ended, f"a RESET of {self.number}")
        assert self.reset is not None, self
        return self.reset

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes for it in this tunnel."""
        return self.reset is not None or self.moved or self.tunnel.is_ended

    def take(self, kind: int, payload: bytes) -> None:
        """One frame of the other end for this stream; fails if the protocol does not allow it."""
        assert self.reset is None, f"frame {kind} behind RESET"
        assert not self.moved, f"frame {kind} behind MOVED"
        assert self.verdict is not None or kind in (VERDICT, RESET), f"frame {kind} before the verdict"
        assert not payload or kind not in (EOF, OWN, MOVED), payload
        if kind == VERDICT:
            assert self.verdict is None, "a second verdict"
            self.verdict = msgpack.unpackb(payload)
        elif kind == DATA:
            assert 1 <= len(payload) <= MAX_DATA
            assert not self.eof, "DATA behind EOF"
            self.given -= len(payload)
            assert self.given >= 0, f"{-self.given} bytes more than there was credit for"
            self.received += payload
            if self.generous and self.given <= WINDOW // 2:
                self.give(WINDOW - self.given)
        elif kind == EOF:
            assert not self.eof, "a second EOF"
            self.eof = True
        elif kind == RESET:
            self.reset = payload
        elif kind == CREDIT:
            (more,) = struct.unpack(">I", payload)
            assert 1 <= more <= WINDOW
            self.credit += more
            assert self.credit <= WINDOW, "credit for what was never sent"
        elif kind == OWN:
            assert self.asked is None, "OWN from the source"
            self.owns += 1
            assert self.owns == 1, "a second OWN"
        elif kind == MOVED:
            self.moved = True
        else:
            raise AssertionError(f"frame {kind} for stream {self.number}")
