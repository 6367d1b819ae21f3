"""Applications that do what a list of steps says, and what they saw of each other: TCP's promise as an oracle."""

import random
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.relay_builder import DEADLINE_S, reset

_POOL: Final = random.Random(0).randbytes(1 << 20)
Step = tuple[str, int, int]
"""What, which application, how many bytes."""


@dataclass(slots=True)
class App:
    """One application: what it wrote, what it read and how each direction ended."""

    sock: socket.socket
    sent: bytearray = field(default_factory=bytearray)
    received: bytearray = field(default_factory=bytearray)
    shut: bool = False
    ended: bool = False
    """Of its own will."""
    resets: bool = False
    end: str = ""

    def __post_init__(self) -> None:
        self.sock.setblocking(False)

    def do(self, step: str, size: int) -> None:
        """One step of a history."""
        match step:
            case "send":
                self.send(size)
            case "read":
                self.read(size)
            case "shut":
                self.ended |= not self.shut and not self.resets
                self.shut_down()
            case "reset":
                self.reset()
            case _:
                select.select([], [], [], 0.002)

    def send(self, size: int) -> None:
        if self.shut or self.resets:
            return
        at = len(self.sent) % (len(_POOL) - 1000)
        try:
            done = self.sock.send(_POOL[at : at + size])
        except BlockingIOError:
            return
        except OSError:
            # It was reset.  The kernel says so once: recv would now return 0.
            self.shut = True
            self.end = self.end or "reset"
            return
        self.sent += _POOL[at : at + done]

    def read(self, size: int) -> None:
        if self.end or self.resets:
            return
        try:
            got = self.sock.recv(size)
        except BlockingIOError:
            return
        except OSError:
            self.end = "reset"
            return
        self.received += got
        if not got:
            self.end = "eof"

    def shut_down(self) -> None:
        if not self.shut and not self.resets:
            self.shut = True
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass

    def reset(self) -> None:
        if not self.resets:
            self.resets = True
            reset(self.sock)


def read_to_the_end(apps: Sequence[App]) -> None:
    """Let all read until each has seen an end."""
    limit = time.monotonic() + DEADLINE_S
    while waiting := [app for app in apps if not app.end and not app.resets]:
        assert time.monotonic() < limit, "a stream that never ends"
        ready, _, _ = select.select([app.sock for app in waiting], [], [], 1)
        for app in waiting:
            if app.sock in ready:
                app.read(1 << 20)


def assert_faithful(one: App, other: App) -> None:
    """What each read, the other wrote; a clean end was meant, and stands behind all of it."""
    for app, peer in ((one, other), (other, one)):
        assert peer.sent.startswith(app.received), "other bytes than were sent"
        if app.end == "eof":
            assert peer.ended, "a clean end that nobody meant"
            assert app.received == peer.sent, "a clean end too early"
