"""The trio side of the relay: hand two sockets over, wait for the ending."""

import logging
import os
import select
import socket
import ssl
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, Protocol

import outcome
import trio

from node_agent.errors import AgentError
from node_agent.frames import CutReason
from node_agent.relay.ending import Ending, Outcome
from node_agent.relay.loop import RelayLoop
from node_agent.relay.meter import Meter
from node_agent.relay.plain_pair import PlainPair
from node_agent.relay.settlement import Settlement
from node_agent.relay.shared_tunnel import OnOpen, SharedTunnel
from node_agent.relay.stream import Stream
from node_agent.relay.tunnel_pair import TunnelPair

if TYPE_CHECKING:
    from node_agent.relay.kernel import Sockmap

_log = logging.getLogger("ringfence.relay")

_STORIES_FIRST_S: Final = 0.002
"""How long runnable stories may keep the relay waiting.  A burst of connections is set up in one go: if those that
are up already took half of every moment, the last would wait several times as long."""

_FINISH_LOOK_S: Final = 0.02


class Pair(Protocol):
    """Two joined sockets in the relay loop."""

    @property
    def up_bytes(self) -> int: ...

    @property
    def down_bytes(self) -> int: ...

    @property
    def is_half_closed(self) -> bool: ...

    @property
    def held_bytes(self) -> int: ...

    def send_queues(self) -> tuple[int, int]: ...

    def start(self) -> None: ...

    def cut(self, reason: CutReason | None) -> None: ...


_KernelPair = Callable[[socket.socket, socket.socket, Callable[[Outcome], None]], Pair]


class _Relaying:
    """One pair and the trio task that waits for it."""

    __slots__ = ("_is_cancelled", "_pair", "_relay", "_result", "_task", "_why")

    def __init__(self, relay: "Relay", why: Callable[[], CutReason | None]) -> None:
        self._relay = relay
        self._why = why
        self._is_cancelled = False

    async def wait(self, pair: Pair) -> Outcome:
        """Start ``pair`` and wait until it has ended."""
        self._task = trio.lowlevel.current_task()
        self._pair = pair
        pair.start()
        self._relay.pairs.add(pair)
        await trio.lowlevel.wait_task_rescheduled(self._cut)
        self._relay.pairs.discard(pair)
        del self._pair  # it knows us, too: as a ring they would wait for the garbage collector
        if self._is_cancelled and self._result.ending is Ending.CUT:
            await trio.lowlevel.checkpoint_if_cancelled()
        return self._result

    def _cut(self, _: object) -> trio.lowlevel.Abort:
        self._is_cancelled = True
        if self._relay.has_crashed:
            return trio.lowlevel.Abort.SUCCEEDED  # nobody will ever report; the process ends and its sockets with it
        self._pair.cut(self._why())
        return trio.lowlevel.Abort.FAILED  # the pair's own report wakes the task: nobody else may touch its sockets

    def done(self, result: Outcome) -> None:
        """Called by the loop, between two batches."""
        self._result = result
        trio.lowlevel.reschedule(self._task)


class Relay(trio.abc.Instrument):
    """Runs the relay loop in trio's thread, whenever trio is about to sleep; closed by ``agent.py``.

    An instrument's ``before_io_wait`` is called right before trio waits for its
    own events, with the time that it would wait.  We wait in its place, on the
    relay's epoll, which also watches trio's epoll: an event for trio, its next
    deadline or a finished pair ends our turn.
    """

    def __init__(self, *, on_crash: Callable[[BaseException], None], sockmap: "Sockmap | None" = None) -> None:
        """``on_crash`` gets the exception that ended the loop: a bug, the agent must not go on without its relay.

        ``sockmap``: plaintext may be relayed by the kernel; it stays the caller's.
        """
        self._on_crash = on_crash
        self._loop = RelayLoop()
        self._trio_epoll = _trio_epoll()
        self._loop.interrupt_on(self._trio_epoll.fileno())
        self._readable_fd = os.eventfd(1, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._trio_epoll.register(self._readable_fd, select.EPOLLONESHOT)
        self._in_kernel = None if sockmap is None else _kernel_pairs(self._loop, sockmap)
        self.pairs: set[Pair] = set()  # those being relayed, for who wants to look at them
        self.has_crashed = False
        self._served_at = 0.0
        trio.lowlevel.add_instrument(self)

    def close(self) -> None:
        """Stop relaying; every pair must have ended before."""
        try:
            trio.lowlevel.remove_instrument(self)
        except KeyError:
            return  # it crashed
        self._loop.close()
        self._trio_epoll.unregister(self._readable_fd)
        os.close(self._readable_fd)

    async def finish(self) -> None:
        """Return when nothing is being relayed, not even the last words on an aborted tunnel."""
        while not self._loop.is_idle:  # noqa: ASYNC110  # an event would cost every connection a check
            await trio.sleep(_FINISH_LOOK_S)

    def before_io_wait(self, timeout: float) -> None:
        """Relay for as long as trio has nothing to do, ``timeout`` seconds at most."""
        try:
            self._relay(timeout)
        except BaseException as error:
            self.has_crashed = True
            _log.exception("the relay loop ended by a bug")
            self._on_crash(error)
            raise  # trio takes a raising instrument off

    def _relay(self, timeout: float) -> None:
        if self._loop.is_empty:
            return
        if timeout == 0 and time.monotonic() - self._served_at < _STORIES_FIRST_S:
            return
        is_time_up = not self._loop.serve(timeout)
        self._served_at = time.monotonic()
        if self._loop.has_reported or (is_time_up and timeout > 0):
            # trio has made up its mind to sleep for ``timeout`` before it asked us: change it.
            self._loop.has_reported = False
            # An event that is there already; one through trio's token is a task's turn and six system calls.
            self._trio_epoll.modify(self._readable_fd, select.EPOLLIN | select.EPOLLONESHOT)

    def run_tunnel(
        self,
        plain: socket.socket,
        tunnel: ssl.SSLSocket,
        on_start: Callable[[Pair], None],
        *,
        why: Callable[[], CutReason | None],
        meter: Meter | None = None,
    ) -> Coroutine[Any, Any, Outcome]:
        """Relay between an application's socket and a tunnel until both directions have ended.

        Takes both sockets over.  ``plain`` is closed on return; ``tunnel`` is
        given back if the ending is COMPLETE, or later by the outcome's settlement
        (``when_settled``, ``settled``).  ``on_start`` gets the pair, to read its
        counters.  Cancellation cuts the pair first, and tells the peer agent
        what ``why`` then returns.  ``meter`` is asked how the bytes may move.

        Not ``async`` itself: every open connection would hold a coroutine more.
        """
        waiting = _Relaying(self, why)
        pair = TunnelPair(loop=self._loop, plain=plain, tunnel=tunnel, on_done=waiting.done, meter=meter)
        on_start(pair)
        return waiting.wait(pair)

    # -- shared tunnels -------------------------------------------------------

    def share(
        self, tunnel: ssl.SSLSocket, *, on_open: OnOpen | None = None, on_end: Callable[[], None]
    ) -> SharedTunnel:
        """Let ``tunnel`` carry many connections; takes it over, ``SharedTunnel.close`` ends it.

        ``on_open`` and ``on_end`` may start tasks.  See ``SharedTunnel``.
        """

        shared = SharedTunnel(loop=self._loop, tunnel=tunnel, on_open=on_open, on_end=on_end)
        shared.start()
        return shared

    def run_stream(
        self,
        plain: socket.socket,
        stream: Stream,
        on_start: Callable[[Pair], None],
        *,
        why: Callable[[], CutReason | None],
        on_own: Callable[[], None] | None = None,
    ) -> Coroutine[Any, Any, Outcome]:
        """Relay between an application's socket and a stream until both directions have ended.

        As ``run_tunnel``.  ``on_own`` is called when the stream is to have a tunnel of its own; it may start tasks.
        If it ``has_moved`` to one, that is given back as ``run_tunnel`` does it.
        """

        waiting = _Relaying(self, why)
        stream.carry(plain, waiting.done, on_own)
        on_start(stream)
        return waiting.wait(stream)

    async def attached(self, stream: Stream, tunnel: ssl.SSLSocket) -> bytes | None:
        """Let ``stream`` go on in ``tunnel`` and wait for its end; takes ``tunnel`` over.

        Returns what came behind the connection's end if the tunnel can be used again, None if it is lost.  When the
        caller is cancelled it is lost, too, with the stream.
        """
        task = trio.lowlevel.current_task()
        is_wanted = True

        def back(ending: Outcome | None) -> None:
            if is_wanted:
                trio.lowlevel.reschedule(task, outcome.Value(ending))

        def abandon(_: object) -> trio.lowlevel.Abort:
            nonlocal is_wanted
            is_wanted = False
            stream.cut(None)
            return trio.lowlevel.Abort.SUCCEEDED

        stream.attach(tunnel, back)
        ending: Outcome | None = await trio.lowlevel.wait_task_rescheduled(abandon)
        if ending is None:
            return None
        if ending.settlement is not None:
            return await self.settled(ending.settlement)
        return ending.leftover if ending.ending is Ending.COMPLETE else None

    def when_settled(self, settlement: Settlement, call: Callable[[bytes | None], None]) -> None:
        """Call ``call`` when a tunnel is settled, with what came behind its end, or None when it is lost."""

        if settlement.is_over:
            call(settlement.leftover)
        else:
            settlement.tell(lambda: call(settlement.leftover))

    async def settled(self, settlement: Settlement) -> bytes | None:
        """Wait until a tunnel is settled; returns what came behind its end, or None when it is lost.

        When the caller is cancelled the tunnel is lost.
        """
        if not settlement.is_over:
            task = trio.lowlevel.current_task()
            self.when_settled(settlement, lambda _: trio.lowlevel.reschedule(task))

            def abandon(_: object) -> trio.lowlevel.Abort:
                settlement.abandon()
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abandon)
        return settlement.leftover

    def run_plain(
        self,
        first: socket.socket,
        second: socket.socket,
        on_start: Callable[[Pair], None],
        *,
        meter: Meter | None = None,
    ) -> Coroutine[Any, Any, Outcome]:
        """Relay between two sockets; takes both over and closes both."""
        waiting = _Relaying(self, _nobody_to_tell)
        pair: Pair
        if self._in_kernel is not None and meter is None:  # the kernel counts bytes, but does not pause
            pair = self._in_kernel(first, second, waiting.done)
        else:
            pair = PlainPair(loop=self._loop, first=first, second=second, on_done=waiting.done, meter=meter)
        on_start(pair)
        return waiting.wait(pair)


def _kernel_pairs(loop: RelayLoop, sockmap: "Sockmap") -> _KernelPair:
    """What makes pairs that the kernel may relay."""
    from node_agent.relay.kernel import Kernel  # noqa: PLC0415  # most have none
    from node_agent.relay.sockmap_pair import SockmapPair  # noqa: PLC0415

    kernel = Kernel(loop=loop, sockmap=sockmap)

    def make(first: socket.socket, second: socket.socket, on_done: Callable[[Outcome], None]) -> Pair:
        return SockmapPair(loop=loop, kernel=kernel, first=first, second=second, on_done=on_done)

    return make


def _trio_epoll() -> select.epoll:
    """What trio waits on: not public, so checked; the lock file pins trio's version."""
    io_manager = getattr(trio._core._run.GLOBAL_RUN_CONTEXT.runner, "io_manager", None)  # noqa: SLF001
    epoll = getattr(io_manager, "_epoll", None)
    if not isinstance(epoll, select.epoll):
        raise AgentError(f"the relay does not fit trio {trio.__version__}: install the version of requirements.lock")
    return epoll


def _nobody_to_tell() -> None:
    """A plain connection knows no reason but RST."""
