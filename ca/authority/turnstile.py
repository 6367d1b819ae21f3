"""How many TLS handshakes are going on at once, and in which order they begin.

Theory of operation.  A handshake is a millisecond of work on the thread that
also reads requests and sends replies.  Were all that arrive begun at once, a
thousand agents that come back together would all wait for the last, and so
would every request.  So they begin in the order in which they came, a few at a
time; those who are begun are finished before others begin.

A turn is taken back after ``_TURN_S``, while the handshake goes on: a peer that
says hello and then nothing must not keep the others waiting.
"""

from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

_AT_ONCE: Final = 16  # ~20 ms of work
_TURN_S: Final = 0.25  # a healthy peer far away takes two round trips
_LOOK_S: Final = 0.05


class Turnstile:
    """Lets ``_AT_ONCE`` through at a time; ``run`` is to be running meanwhile."""

    def __init__(self) -> None:
        self._free = trio.Semaphore(_AT_ONCE, max_value=_AT_ONCE)
        self._inside: OrderedDict[object, float] = OrderedDict()  # since when, the longest first

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return self._free.statistics().tasks_waiting

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn, and leave it to the next one at the end."""
        await self._free.acquire()
        one = object()
        self._inside[one] = trio.current_time()
        try:
            yield
        finally:
            self._leave(one)

    async def run(self) -> None:
        """Take back turns that last too long, until cancelled."""
        while True:
            await trio.sleep(_LOOK_S)
            began_before = trio.current_time() - _TURN_S
            while self._inside and (oldest := next(iter(self._inside.items())))[1] < began_before:
                self._leave(oldest[0])

    def _leave(self, one: object) -> None:
        if self._inside.pop(one, None) is not None:
            self._free.release()
