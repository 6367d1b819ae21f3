"""A model of the endpoints: how they accept, queue, serve, and fail.

A server has a few workers and a queue, as most programs have.  How long it takes
to accept grows with how busy its host is; a queue that is full drops the SYN,
which the client's kernel sends again after 1 s, 3 s and so on (RFC 6298).
"""

from collections import deque
from collections.abc import Callable
from enum import Enum
from math import exp
from random import Random
from typing import Final

_WORKERS: Final = 4
_BACKLOG: Final = 128
_SERVICE_S: Final = 0.2
_SERVICE_SPREAD: Final = 0.5  # sigma of a lognormal: one in a hundred takes three times as long
_HOST_SPREAD: Final = 0.25  # sigma of a lognormal, too: machines, and neighbours on them, differ
_ACCEPT_S: Final = 0.0003  # both agents and both kernels, on an idle host
_RTT_S: Final = {True: 0.0003, False: 0.0012}  # within a zone, between zones

CAPACITY_PER_S: Final = _WORKERS / (_SERVICE_S * exp(_SERVICE_SPREAD**2 / 2))
"""Connections a second that one server of the usual speed can serve."""


class Mode(Enum):
    UP = "up"
    STUCK = "stuck"  # the program hangs, its kernel accepts for it
    REFUSES = "refuses"  # the program is gone, its host answers
    SILENT = "silent"  # the host is gone, nobody answers


class Server:
    """One endpoint; ``now`` is seconds of virtual time.

    Args:
        later: calls a function after so many seconds.
    """

    def __init__(self, zone: str, rng: Random, later: Callable[[float, Callable[[], None]], None]) -> None:
        self.zone = zone
        self.mode = Mode.UP
        self.slowness = 1.0
        self.served = 0
        self._host = rng.lognormvariate(0.0, _HOST_SPREAD)
        self._rng = rng
        self._later = later
        self._busy = 0
        self._queue: deque[Callable[[bool], None]] = deque()
        self._running: set[Callable[[bool], None]] = set()
        self._done_meanwhile: list[Callable[[bool], None]] = []  # while it hung

    def connect_s(self, zone: str) -> float:
        """How long a connect from a zone takes if it is answered."""
        busy = 1.0 + self._busy / _WORKERS
        accept_s = _ACCEPT_S * self._host * self.slowness * busy * self._rng.expovariate(1.0)
        return _RTT_S[zone == self.zone] + accept_s

    @property
    def is_full(self) -> bool:
        return len(self._queue) >= _BACKLOG

    def serve(self, ended: Callable[[bool], None]) -> None:
        """Serve a connection that was accepted; ``ended`` is told whether its client had its answer."""
        if self._busy < _WORKERS and self.mode is Mode.UP:
            self._start(ended)
        else:
            self._queue.append(ended)

    def hang(self) -> None:
        """Answer nobody from now on, and lose nothing."""
        self.mode = Mode.STUCK

    def revive(self) -> None:
        """Be there again; one that hung goes on where it was."""
        self.mode = Mode.UP
        stuck, self._done_meanwhile = self._done_meanwhile, []
        for ended in stuck:
            self._finish(ended)
        while self._queue and self._busy < _WORKERS:
            self._start(self._queue.popleft())

    def fail(self, mode: Mode) -> None:
        """Be gone: whoever is connected has no answer."""
        self.mode = mode
        lost = [*self._running, *self._queue]
        self._running.clear()
        self._queue.clear()
        self._busy = 0
        for ended in lost:
            ended(False)

    def _start(self, ended: Callable[[bool], None]) -> None:
        self._busy += 1
        self._running.add(ended)
        service_s = _SERVICE_S * self._host * self.slowness * self._rng.lognormvariate(0.0, _SERVICE_SPREAD)
        self._later(service_s, lambda: self._finish(ended))

    def _finish(self, ended: Callable[[bool], None]) -> None:
        if ended not in self._running:
            return  # it failed meanwhile
        if self.mode is Mode.STUCK:
            self._done_meanwhile.append(ended)
            return
        self._running.remove(ended)
        self._busy -= 1
        self.served += 1
        if self._queue:
            self._start(self._queue.popleft())
        ended(True)
