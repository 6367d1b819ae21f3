"""The relay loop: one epoll that moves the bytes of many connections.

Two trio tasks a connection cost several times what one raw epoll loop costs
(docs/architecture.md, "Relay").  So trio tells the story of a connection and
hands two connected sockets over; from then on only this loop touches them,
until it reports back.

Theory of operation
-------------------
* The loop runs in trio's own thread, in the moments in which trio would sleep
  (relay.py).  In a thread of its own the two fought for the interpreter's lock:
  a connection cost up to twice as much, and a busy relay starved the stories.
* Level-triggered.  A pair reads once, writes once and returns, so a bulk
  transfer can not starve a neighbour; what is left is announced again by the
  next ``epoll_wait``.  A pair changes what it waits for only when a write
  blocks or ends, so back-pressure is the peer's own TCP window.
* All pairs read into one *arena*.  Bytes that can not be written at once are
  kept: small ones are copied, a large rest keeps the arena itself and the loop
  takes another one.  An idle connection therefore owns no buffer.
* Sockets are closed, and endings reported, only between two batches of events:
  a file descriptor number can not be reused while an event that names its
  former owner is still waiting in the batch.
"""

import heapq
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

from node_agent.frames import HEADER_BYTES

IN: Final = select.EPOLLIN
OUT: Final = select.EPOLLOUT
RDHUP: Final = select.EPOLLRDHUP
READ: Final = IN | RDHUP
ERR: Final = select.EPOLLERR
HUP: Final = select.EPOLLHUP

ARENA_BYTES: Final = 256 * 1024
_COPY_BELOW_BYTES: Final = 32 * 1024  # copying this much costs about what a fresh arena's page faults do
_SPARE_ARENAS: Final = 8
_BATCH: Final = 256

EventHandler = Callable[[int], None]


class RelayLoop:
    """Owns the epoll; ``serve`` is called again and again, everything else in between or from within.

    ``call_soon`` may be called from any thread, the rest only from the one that
    calls ``serve``.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, EventHandler] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._later_count = 0
        self._to_close: list[socket.socket] = []
        self._to_report: list[Callable[[], None]] = []
        self._spare: list[bytearray] = []
        # Of shared tunnels (shared_up.py), with what is behind a first header.
        self.spare_outs: list[tuple[memoryview, memoryview]] = []
        self._interrupted = False
        self.has_reported = False  # for who called ``serve``, who also sets it back
        self._take_arena()
        self._own_descriptors = 1
        self._quiet_descriptors = 0
        self._to_flush: list[Callable[[], None]] = []
        self.adopt(self._wake_fd, IN, self._on_wake)

    def close(self) -> None:
        """Sockets that are still adopted are the caller's to close."""
        self._epoll.close()
        os.close(self._wake_fd)

    @property
    def is_idle(self) -> bool:
        """Whether no connection is adopted and nothing is left to do."""
        return self._has_only(self._own_descriptors + self._quiet_descriptors)

    @property
    def is_empty(self) -> bool:
        """Whether nothing at all is adopted and nothing is left to do: there is no need to serve."""
        return self._has_only(self._own_descriptors)

    def _has_only(self, descriptors: int) -> bool:
        return len(self._handlers) == descriptors and not (self._calls or self._to_report or self._to_flush)

    def call_soon(self, call: Callable[[], None]) -> None:
        """Run ``call`` in ``serve``, between two batches."""
        self._calls.append(call)
        os.eventfd_write(self._wake_fd, 1)

    def _on_wake(self, _event: int) -> None:
        os.eventfd_read(self._wake_fd)

    def interrupt_on(self, fd: int) -> None:
        """Let ``serve`` return after the batch in which ``fd`` is readable."""
        self.watch(fd, self._on_interrupt)

    def watch(self, fd: int, handler: EventHandler) -> None:
        """Call ``handler`` when ``fd`` is readable; it is no connection, and does not keep the loop busy."""
        self._own_descriptors += 1
        self.adopt(fd, IN, handler)

    def _on_interrupt(self, _event: int) -> None:
        self.interrupt()

    def interrupt(self) -> None:
        """Let ``serve`` return after this batch; called from within it."""
        self._interrupted = True

    def serve(self, timeout_s: float) -> bool:
        """Serve events for ``timeout_s``, or until an ending was reported or an interrupting descriptor is readable.

        Returns False when the time is up, True otherwise.  Raises what a
        handler raises: a bug, after which nothing is in order any more.
        """
        deadline = time.monotonic() + timeout_s
        self._interrupted = False
        poll = self._epoll.poll
        handlers = self._handlers
        if (self._to_flush or self._to_report) and self._tidy_up():
            return True
        while True:
            for fd, event in poll(self._until_next_call(timeout_s) if self._later else timeout_s, _BATCH):
                handler = handlers.get(fd)
                if handler is not None:
                    handler(event)
            if self._to_flush:
                self._flush()
            if (self._calls or self._later or self._to_close or self._to_report) and self._tidy_up():
                return True
            if self._interrupted:
                return True
            if timeout_s > 0:
                timeout_s = deadline - time.monotonic()
            if timeout_s <= 0:
                return False

    def _tidy_up(self) -> bool:
        """Do what waits for the end of a batch, and what comes of that; returns whether an ending was reported."""
        has_reported = False
        while True:
            while self._calls:
                self._calls.popleft()()
            if self._later:
                self._call_what_is_due(time.monotonic())
            if self._to_flush:
                self._flush()
            for sock in self._to_close:
                sock.close()
            self._to_close.clear()
            if not self._to_report:
                return has_reported
            reports, self._to_report = self._to_report, []
            self.has_reported = has_reported = True
            for report in reports:
                report()

    def _flush(self) -> None:
        for call in self._to_flush:  # and those that are added by them
            call()
        self._to_flush.clear()

    def _until_next_call(self, timeout_s: float) -> float:
        return max(0.0, min(timeout_s, self._later[0][0] - time.monotonic()))

    def _call_what_is_due(self, now: float) -> None:
        while self._later and self._later[0][0] <= now:
            heapq.heappop(self._later)[2]()

    # -- for the pairs --------------------------------------------------------

    def adopt(self, fd: int, mask: int, handler: EventHandler) -> None:
        """Send the events of ``fd`` to ``handler`` from now on."""
        self._handlers[fd] = handler
        self._epoll.register(fd, mask)

    def interest(self, fd: int, mask: int) -> None:
        """Change what to wait for on ``fd``."""
        try:
            self._epoll.modify(fd, mask)
        except FileNotFoundError:
            self._epoll.register(fd, mask)

    def forget(self, fd: int) -> None:
        """Send no more events of ``fd``; it stays open."""
        self._handlers.pop(fd, None)
        try:
            self._epoll.unregister(fd)
        except FileNotFoundError:
            pass

    def adopt_quiet(self, fd: int, mask: int, handler: EventHandler) -> None:
        """As ``adopt``, for a descriptor that is no connection: with nothing but such the loop is idle."""
        self._quiet_descriptors += 1
        self.adopt(fd, mask, handler)

    def forget_quiet(self, fd: int) -> None:
        """As ``forget``, for what ``adopt_quiet`` adopted."""
        self._quiet_descriptors -= 1
        self.forget(fd)

    def take_over(self, fd: int, mask: int, handler: EventHandler) -> None:
        """Send the events of ``fd`` to another handler than before."""
        self._handlers[fd] = handler
        self.interest(fd, mask)

    def call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Run ``call`` in ``delay_s``, if anything is adopted then; it can not be taken back."""
        self._later_count += 1
        heapq.heappush(self._later, (time.monotonic() + delay_s, self._later_count, call))

    def silence(self, fd: int) -> None:
        """Send no events of ``fd``, not even errors, until ``interest`` is called for it again."""
        try:
            self._epoll.unregister(fd)
        except FileNotFoundError:
            pass

    def close_later(self, sock: socket.socket) -> None:
        """Close ``sock`` when the batch is through; its events end now."""
        self._handlers.pop(sock.fileno(), None)
        self._to_close.append(sock)

    def close_now(self, sock: socket.socket) -> None:
        """Close ``sock``; called from outside of ``serve``."""
        self._handlers.pop(sock.fileno(), None)
        sock.close()

    def flusher(self, call: Callable[[], None]) -> Callable[[], None]:
        """Return what has ``call`` called when the batch is through, before the next wait."""
        return partial(self._to_flush.append, call)

    def report_later(self, report: Callable[[], None]) -> None:
        """Call ``report`` when the batch is through and its sockets are closed."""
        self._to_report.append(report)

    def keep(self, view: memoryview) -> memoryview:
        """Return bytes of the arena in a form that outlives this event."""
        if len(view) <= _COPY_BELOW_BYTES:
            return memoryview(bytes(view))
        self._take_arena()
        return view

    def borrow(self) -> memoryview:
        """Return a buffer of ``ARENA_BYTES`` that nobody else uses until ``give_back``."""
        return memoryview(self._spare.pop() if self._spare else bytearray(ARENA_BYTES))

    def give_back(self, view: memoryview) -> None:
        """The caller is done with what ``keep`` or ``borrow`` returned."""
        arena = view.obj
        if isinstance(arena, bytearray) and len(self._spare) < _SPARE_ARENAS:
            self._spare.append(arena)

    def _take_arena(self) -> None:
        self.arena = self.borrow()
        self.arena_body = self.arena[HEADER_BYTES:]
