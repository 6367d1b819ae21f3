"""One direction of a plaintext connection that the kernel may relay: who has it now, and when that changes.

    user --small messages, all passed on--> kernel --more than the receiver takes, or the end--> draining
      ^                                                                                            |
      +------------------- what the kernel handed on is in the receiver's socket ------------------+

It does no I/O: sockets are the pair's (sockmap_pair.py), who calls this with what it has done.
"""

import socket
from enum import Enum, auto
from typing import Final

from node_agent.relay.ending import Ending
from node_agent.relay.kernel import KernelFlow

FIRST_READ_BYTES: Final = 16 * 1024
SMALL_BYTES: Final = 16 * 1024  # a message of more is cheaper in user space: the kernel copies packet by packet
CALM_READS: Final = 8  # to join costs as much as to relay a few messages; many connections have no more
_MOST_CALM_READS: Final = 4096


class Mode(Enum):
    """Who relays."""

    USER = auto()
    KERNEL = auto()
    DRAINING = auto()
    """We, as soon as what the kernel still has is on its way."""


class SockmapFlow:
    """From ``source`` to ``sink``; ``held`` is what could not be sent."""

    __slots__ = (
        "_calm_reads",
        "_calm_wanted",
        "_kernel",
        "_moved_before",
        "_user_bytes",
        "ended",
        "held",
        "mode",
        "read_bytes",
        "sink",
        "sink_broken",
        "source",
        "source_broken",
    )

    def __init__(
        self, source: socket.socket, sink: socket.socket, *, source_broken: Ending, sink_broken: Ending
    ) -> None:
        self.source = source
        self.sink = sink
        self.source_broken = source_broken
        self.sink_broken = sink_broken
        self.held: memoryview | None = None
        self.ended = False
        self.mode = Mode.USER
        self.read_bytes = FIRST_READ_BYTES
        self._kernel: KernelFlow | None = None
        self._user_bytes = 0
        self._moved_before = 0
        self._calm_reads = 0
        self._calm_wanted = CALM_READS

    @property
    def moved_bytes(self) -> int:
        """All that has been read and passed on, whoever did it."""
        return self._user_bytes if self._kernel is None else self._user_bytes + self._kernel.moved_bytes

    @property
    def is_joined(self) -> bool:
        """Whether the kernel knows of this direction."""
        return self._kernel is not None

    # -- we relay -----------------------------------------------------------------

    def read(self, received: int, *, most_bytes: int) -> None:
        """We have read so much."""
        self._user_bytes += received
        if received == self.read_bytes:
            self.read_bytes = min(received * 4, most_bytes)
            self._calm_reads = 0
        elif received > SMALL_BYTES:
            self._calm_reads = 0
        else:
            self._calm_reads += 1

    def stalled(self) -> None:
        """It could not all be sent at once."""
        self._calm_reads = 0

    @property
    def calm_reads(self) -> int:
        """Small messages since the last large one."""
        return self._calm_reads

    @property
    def is_calm(self) -> bool:
        """Whether the kernel should have it: more and more is asked of one that it had to give back."""
        return self._calm_reads >= self._calm_wanted and self.held is None and not self.ended

    def put_off(self) -> None:
        """It did not work now: it may later."""
        self._calm_reads = 0
        self._calm_wanted = min(self._calm_wanted * 2, _MOST_CALM_READS)

    # -- the kernel relays ----------------------------------------------------------

    def join(self, kernel: KernelFlow) -> None:
        """The kernel has this direction from now on."""
        assert self.held is None
        self._kernel = kernel
        self._moved_before = self._user_bytes
        self.mode = Mode.KERNEL

    def _since(self) -> int:
        return self._user_bytes - self._moved_before

    def give_back(self) -> bool:
        """Let the kernel have it again; False if it must not be."""
        assert self._kernel is not None
        if not self._kernel.take_up(self._since()):
            return False
        self.mode = Mode.KERNEL
        return True

    @property
    def is_demoted(self) -> bool:
        """Whether the kernel has left it to us, and we have not noticed yet."""
        return self.mode is Mode.KERNEL and self._kernel is not None and self._kernel.is_demoted

    def drain(self) -> None:
        """It is to be ours."""
        assert self._kernel is not None
        self._kernel.hold()
        self.put_off()
        self.mode = Mode.DRAINING

    def is_drained(self) -> bool:
        """Whether it can be: nothing of it is still on the way inside the kernel.  Raises OSError."""
        return self._kernel is None or self._kernel.is_drained(self._since())

    def is_whole(self) -> bool:
        """At the sender's end: whether nothing was lost on the way.  Raises OSError."""
        return self._kernel is None or self._kernel.is_whole(self._since())

    def leave(self) -> None:
        """The sockets are closed: keep the sum, the kernel's counter goes."""
        if self._kernel is not None:
            self._user_bytes += self._kernel.moved_bytes
            self._kernel = None
