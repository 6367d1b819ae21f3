"""Join real sockets by the real sockmap and a real relay loop, with the test at both free ends.

    first <-TCP-> A | SockmapPair, or the kernel by itself | B <-TCP-> second

The programs are loaded into a place of the test's own; the loop runs in a
thread, which ``held_up`` stops, as an agent that has no time.
"""

import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bpf import pins, status
from bpf.loader import load
from bpf.pins import Pins
from bpf.plan import FEATURES, SOCKMAP
from node_agent.capture.sockmap import KernelSockmap
from node_agent.relay.kernel import Kernel
from node_agent.relay.loop import RelayLoop
from node_agent.relay.sockmap_flow import CALM_READS
from node_agent.relay.sockmap_pair import SockmapPair
from tests.mesh_builder import LAB_NAME
from tests.relay_builder import Finish, tcp_pair

DEADLINE_S: Final = 60.0
SOCKETS: Final = ("sockmap_sources", "sockmap_sinks", "sockmap_slots")
_SMALL: Final = b"a small message."
_PATTERN: Final = random.Random(7).randbytes((1 << 20) + 7)  # no power of two: a byte out of place does not match


@contextmanager
def loaded(name: str = "sockmap", *, kernel: tuple[int, int] | None = None) -> Iterator[Path]:
    """The pins of the one feature, in a place of our own; what a killed session left there is removed first."""
    root = Path(f"/sys/fs/bpf/rf_{LAB_NAME}_{name}")
    places = (Pins(root).staging, Pins(root).unloading, root)
    for each in places:
        pins.remove_tree(each)
    try:
        load(root, features=tuple(each for each in FEATURES if each.name == SOCKMAP), kernel=kernel)
        yield root
    finally:
        for each in places:
            pins.remove_tree(each)


def entries(root: Path) -> dict[str, int]:
    """How many are in the maps of sockets, as ``ringfence bpf status`` tells it."""
    return {each["name"]: each["entries"] for each in status.collect(root)["maps"] if each["name"] in SOCKETS}


@dataclass(slots=True)
class Joined:
    """One connection: the applications' ends, and the pair between them."""

    first: socket.socket
    second: socket.socket
    pair: SockmapPair
    finish: Finish
    between: tuple[socket.socket, socket.socket]

    def talk(self, rounds: int, *, message: bytes = _SMALL) -> None:
        """Send a small message there and back, so many times."""
        for _ in range(rounds):
            self.first.sendall(message)
            assert read_exactly(self.second, len(message)) == message
            self.second.sendall(message)
            assert read_exactly(self.first, len(message)) == message

    def close(self) -> None:
        self.first.close()
        self.second.close()
        self.finish.wait()


class SockmapBench:
    """One relay loop with the sockmap; ``close`` checks that nothing is left in the maps."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sockmap = KernelSockmap(root)
        self.loop = RelayLoop()
        self._kernel = Kernel(loop=self.loop, sockmap=self.sockmap)
        self._stopping = False
        self._crashes: list[BaseException] = []
        self._sockets: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        try:
            while not self._stopping:
                self.loop.serve(60)
        except BaseException as error:  # shown by close
            self._crashes.append(error)

    def _stop(self) -> None:
        self._stopping = True
        self.loop.interrupt()

    def join(self) -> Joined:
        """A connection whose bytes the agent moves, until it is calm."""
        first, one = tcp_pair()
        second, other = tcp_pair()
        for each in (first, second):
            each.settimeout(DEADLINE_S)
        for each in (one, other):
            each.setblocking(False)
        self._sockets += [first, one, second, other]
        finish = Finish()
        pair = SockmapPair(loop=self.loop, kernel=self._kernel, first=one, second=other, on_done=finish)
        self.loop.call_soon(pair.start)
        return Joined(first=first, second=second, pair=pair, finish=finish, between=(one, other))

    def in_kernel(self) -> Joined:
        """A connection that the kernel relays."""
        joined = self.join()
        limit = time.monotonic() + DEADLINE_S
        while not joined.pair.is_joined:
            joined.talk(CALM_READS)
            assert time.monotonic() < limit
        return joined

    @contextmanager
    def held_up(self) -> Iterator[None]:
        """The loop does nothing within the block."""
        is_held, go_on = threading.Event(), threading.Event()

        def hold() -> None:
            is_held.set()
            go_on.wait(DEADLINE_S)

        self.loop.call_soon(hold)
        assert is_held.wait(DEADLINE_S)
        try:
            yield
        finally:
            go_on.set()

    def close(self) -> None:
        for each in self._sockets:
            each.close()
        self.loop.call_soon(self._stop)
        self._thread.join(DEADLINE_S)
        self.loop.close()
        self.sockmap.close()
        assert self._crashes == []


def read_exactly(sock: socket.socket, size: int) -> bytes:
    """Fails with the end of the stream."""
    got = b""
    while len(got) < size:
        more = sock.recv(size - len(got))
        assert more, f"the stream ended after {len(got)} of {size} bytes"
        got += more
    return got


def send_pattern(sock: socket.socket, total: int, *, sizes: Iterator[int]) -> None:
    """Send ``total`` bytes of which each says where it belongs, in pieces, and the end."""
    at = 0
    while at < total:
        offset = at % len(_PATTERN)
        at += (size := min(next(sizes), total - at, len(_PATTERN) - offset))
        sock.sendall(_PATTERN[offset : offset + size])
    sock.shutdown(socket.SHUT_WR)


def pattern(start: int, size: int) -> bytes:
    """Bytes of which each says where it belongs."""
    whole = _PATTERN * ((start % len(_PATTERN) + size) // len(_PATTERN) + 1)
    return whole[start % len(_PATTERN) :][:size]


def receive_pattern(sock: socket.socket, *, most_bytes: int = 1 << 20) -> int:
    """Read to the clean end; every byte has to be in its place.  Returns how many they were."""
    at = 0
    while more := sock.recv(most_bytes):
        seen = 0
        while seen < len(more):
            offset = (at + seen) % len(_PATTERN)
            part = _PATTERN[offset : offset + len(more) - seen]
            assert more[seen : seen + len(part)] == part, f"wrong between {at + seen} and {at + seen + len(part)}"
            seen += len(part)
        at += len(more)
    return at
