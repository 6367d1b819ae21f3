"""What the relay asks of the kernel, where it may relay plaintext (docs/bpf.md, "Relaying in the kernel")."""

import socket
from collections.abc import Callable
from typing import Final, Protocol

from node_agent.relay.loop import RelayLoop

_LOOK_S: Final = 0.5

Tell = Callable[[], None]


class KernelFlow(Protocol):
    """One direction; capture/kernel_flow.py says what each of these means."""

    @property
    def moved_bytes(self) -> int: ...

    @property
    def is_demoted(self) -> bool: ...

    def hold(self) -> None: ...

    def take_up(self, user_bytes: int) -> bool: ...

    def is_drained(self, user_bytes: int) -> bool: ...

    def is_whole(self, user_bytes: int) -> bool: ...


class Joined(Protocol):
    """Two sockets that the kernel relays between."""

    @property
    def up(self) -> KernelFlow | None: ...

    @property
    def down(self) -> KernelFlow | None: ...

    def leave(self) -> None:
        """Both sockets are closed."""


class Sockmap(Protocol):
    """The kernel's side (capture/sockmap.py)."""

    ring_fd: int

    @property
    def is_used(self) -> bool: ...

    def join(self, first: socket.socket, second: socket.socket, *, tell: tuple[Tell, Tell]) -> Joined | None: ...

    def read_ring(self, event: int) -> None: ...

    def look(self) -> None: ...


class Kernel:
    """The sockmap, in one relay loop: hears of it, and looks itself now and then as long as it is used."""

    def __init__(self, *, loop: RelayLoop, sockmap: Sockmap) -> None:
        self._loop = loop
        self._sockmap = sockmap
        self._is_looking = False
        loop.watch(sockmap.ring_fd, sockmap.read_ring)

    def join(self, first: socket.socket, second: socket.socket, *, tell: tuple[Tell, Tell]) -> Joined | None:
        """See ``KernelSockmap.join``."""
        joined = self._sockmap.join(first, second, tell=tell)
        if joined is not None and not self._is_looking:
            self._is_looking = True
            self._loop.call_later(_LOOK_S, self._look)
        return joined

    def _look(self) -> None:
        self._sockmap.look()
        self._is_looking = self._sockmap.is_used
        if self._is_looking:
            self._loop.call_later(_LOOK_S, self._look)
