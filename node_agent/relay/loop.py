"""The relay thread: one epoll that moves the bytes of many connections.

Why a thread here and nowhere else: two trio tasks a connection cost several
times what one raw epoll loop costs (docs/architecture.md, "Relay").  trio tells
the story of a connection and hands two connected sockets over; from then on
only this thread touches them, until it reports back.

Theory of operation
-------------------
* Level-triggered.  A pair reads once, writes once and returns, so a bulk
  transfer can not starve a neighbour; what is left is announced again by the
  next ``epoll_wait``.  A pair changes what it waits for only when a write
  blocks or ends, so back-pressure is the peer's own TCP window.
* All pairs of a loop read into one *arena*.  Bytes that can not be written at
  once are kept: small ones are copied, a large rest keeps the arena itself and
  the loop takes another one.  An idle connection therefore owns no buffer.
* Sockets are closed, and endings reported, only between two batches of events:
  a file descriptor number can not be reused while an event that names its
  former owner is still waiting in the batch.
* ``adopt`` may be called from the trio thread: ``epoll_ctl`` is safe beside
  ``epoll_wait``, so handing over costs no wake-up.
"""

import logging
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from node_agent.frames import HEADER_BYTES

_log = logging.getLogger("ringfence.relay")

IN: Final = select.EPOLLIN
OUT: Final = select.EPOLLOUT
ERR: Final = select.EPOLLERR
HUP: Final = select.EPOLLHUP

ARENA_BYTES: Final = 256 * 1024
_COPY_BELOW_BYTES: Final = 32 * 1024  # copying this much costs about what a fresh arena's page faults do
_SPARE_ARENAS: Final = 8
_BATCH: Final = 256

EventHandler = Callable[[int], None]


class RelayLoop:
    """One relay thread; made and started by ``Relay``, stopped by ``stop``.

    ``on_crash`` is called from the relay thread with the exception that ended
    it: a bug of ours, the agent must not go on without its relay.
    """

    def __init__(self, name: str, on_crash: Callable[[BaseException], None]) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, EventHandler] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._to_close: list[socket.socket] = []
        self._to_report: list[Callable[[], None]] = []
        self._spare: list[bytearray] = []
        self._on_crash = on_crash
        self._stopping = False
        self._take_arena()
        self._epoll.register(self._wake_fd, IN)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it; sockets still adopted are the caller's to close."""
        self.call_soon(self._stop)
        self._thread.join()
        self._epoll.close()
        os.close(self._wake_fd)

    def _stop(self) -> None:
        self._stopping = True

    # -- any thread ---------------------------------------------------------

    def adopt(self, fd: int, mask: int, handler: EventHandler) -> None:
        """Send the events of ``fd`` to ``handler``, in the relay thread, from now on."""
        self._handlers[fd] = handler
        try:
            self._epoll.register(fd, mask)
        except FileExistsError:
            # The pair's other socket was adopted first and its handler has already told what it wants of this one.
            pass

    def call_soon(self, call: Callable[[], None]) -> None:
        """Run ``call`` in the relay thread, between two batches."""
        self._calls.append(call)
        os.eventfd_write(self._wake_fd, 1)

    # -- the relay thread ---------------------------------------------------

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

    def report_later(self, report: Callable[[], None]) -> None:
        """Call ``report`` when the batch is through and its sockets are closed."""
        self._to_report.append(report)

    def keep(self, view: memoryview) -> memoryview:
        """Return bytes of the arena in a form that outlives this event."""
        if len(view) <= _COPY_BELOW_BYTES:
            return memoryview(bytes(view))
        self._take_arena()
        return view

    def give_back(self, view: memoryview) -> None:
        """The caller is done with what ``keep`` returned."""
        arena = view.obj
        if isinstance(arena, bytearray) and len(self._spare) < _SPARE_ARENAS:
            self._spare.append(arena)

    def _take_arena(self) -> None:
        self.arena = memoryview(self._spare.pop() if self._spare else bytearray(ARENA_BYTES))
        self.arena_body = self.arena[HEADER_BYTES:]

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._serve_batch(self._epoll.poll(-1, _BATCH))
        except BaseException as error:
            _log.exception("relay thread ended by a bug")
            self._on_crash(error)

    def _serve_batch(self, batch: list[tuple[int, int]]) -> None:
        handlers = self._handlers
        for fd, event in batch:
            handler = handlers.get(fd)
            if handler is not None:
                handler(event)
            elif fd == self._wake_fd:
                os.eventfd_read(self._wake_fd)
        while self._calls:
            self._calls.popleft()()
        if self._to_close:
            for sock in self._to_close:
                sock.close()
            self._to_close.clear()
        if self._to_report:
            reports, self._to_report = self._to_report, []
            for report in reports:
                report()
