"""The trio side of the relay: hand two sockets over, wait for the ending."""

import socket
import ssl
from collections.abc import Callable
from typing import Protocol

import outcome as trio_outcome
import trio

from node_agent.errors import CloseReason
from node_agent.relay.ending import Ending, Outcome
from node_agent.relay.loop import RelayLoop
from node_agent.relay.plain_pair import PlainPair
from node_agent.relay.tunnel_pair import TunnelPair


class Pair(Protocol):
    """Two joined sockets on a relay thread."""

    @property
    def up_bytes(self) -> int: ...

    @property
    def down_bytes(self) -> int: ...

    def start(self) -> None: ...

    def cut(self, reason: CloseReason | None) -> None: ...


class _Relaying:
    """One pair and the trio task that waits for it."""

    __slots__ = ("_task", "_token", "result")

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self._token = token
        self._task = trio.lowlevel.current_task()
        self.result: Outcome | None = None

    def done(self, result: Outcome) -> None:
        """Called in the relay thread."""
        self.result = result
        try:
            self._token.run_sync_soon(self._wake)
        except trio.RunFinishedError:
            pass  # the agent is gone; the sockets are closed already

    def _wake(self) -> None:
        trio.lowlevel.reschedule(self._task, trio_outcome.Value(None))


class Relay:
    """Owns the relay threads; made and closed by ``agent.py``."""

    def __init__(self, *, threads: int, on_crash: Callable[[BaseException], None]) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._loops = [RelayLoop(f"relay-{number}", on_crash) for number in range(threads)]
        self._next = 0
        for loop in self._loops:
            loop.start()

    def close(self) -> None:
        """Stop the threads; every pair must have ended before."""
        for loop in self._loops:
            loop.stop()

    async def run_tunnel(
        self,
        plain: socket.socket,
        tunnel: ssl.SSLSocket,
        on_start: Callable[[Pair], None],
        *,
        why: Callable[[], CloseReason | None],
    ) -> Outcome:
        """Relay between an application's socket and a tunnel until both directions have ended.

        Takes both sockets over.  ``plain`` is closed on return; ``tunnel``
        unless the ending is COMPLETE.  ``on_start`` gets the pair, to read its
        counters.  Cancellation cuts the pair first, and tells the peer agent
        what ``why`` then returns.
        """
        waiting = _Relaying(self._token)
        pair = TunnelPair(loop=self._loop(), plain=plain, tunnel=tunnel, on_done=waiting.done)
        on_start(pair)
        return await _wait(pair, waiting, why)

    async def run_plain(self, first: socket.socket, second: socket.socket, on_start: Callable[[Pair], None]) -> Outcome:
        """Relay between two sockets; takes both over and closes both."""
        waiting = _Relaying(self._token)
        pair = PlainPair(loop=self._loop(), first=first, second=second, on_done=waiting.done)
        on_start(pair)
        return await _wait(pair, waiting, _nobody_to_tell)

    def _loop(self) -> RelayLoop:
        self._next = (self._next + 1) % len(self._loops)
        return self._loops[self._next]


def _nobody_to_tell() -> None:
    """A plain connection knows no reason but RST."""


async def _wait(pair: Pair, waiting: _Relaying, why: Callable[[], CloseReason | None]) -> Outcome:
    cancelled = False

    def cut(_: object) -> trio.lowlevel.Abort:
        nonlocal cancelled
        cancelled = True
        pair.cut(why())
        return trio.lowlevel.Abort.FAILED  # the pair's own report wakes the task: nobody else may touch its sockets

    pair.start()
    await trio.lowlevel.wait_task_rescheduled(cut)
    assert waiting.result is not None
    if cancelled and waiting.result.ending is Ending.CUT:
        await trio.lowlevel.checkpoint_if_cancelled()
    return waiting.result
