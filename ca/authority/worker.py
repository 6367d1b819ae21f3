"""The one thread that signs and writes, and the queue in front of it.

Theory of operation.  Signing holds the interpreter and the journal has one
writer, so that a second thread would only wait for the first.  What arrives
while the thread works waits in a ``FairQueue``; the thread then takes a group
of requests, in turns by peer, and writes what they add to the journal in one
transaction: while one group waits for the disk the next one gathers, and a slow
disk makes the groups larger, not the wait longer.

What does not fit the queue is turned away with the time to come again, and so
is what has waited so long that its client is about to give up: an overloaded
authority must not spend its time on answers that nobody waits for.
"""

import random
from collections.abc import Hashable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import trio

from ca.authority.errors import Refusal
from ca.authority.fair_queue import FairQueue
from ca.authority.overload import Overload
from ca.authority.requests import Asked, RequestHandler
from ca.messages import MAX_REQUESTS, RefusalCode, Reply, SignWorkloads

MAX_WAITING: Final = 2_000  # certificates; at 1000 a second the last of them waits two seconds
_MAX_WAITING_A_PEER: Final = 2 * MAX_REQUESTS
_GROUP: Final = 200  # certificates in one transaction: up to 0.2 s of work
_PATIENCE_S: Final = 4.0  # an agent gives up after 5 s


@dataclass(slots=True, kw_only=True, eq=False)
class _Waiting:
    asked: Asked
    since: float
    done: trio.Event = field(default_factory=trio.Event)
    reply: Reply | None = None


class Worker:
    """Answers requests, one group after the other.

    ``limiter`` is that of the one thread that may use the store; ``run`` is to
    be running while requests are answered.
    """

    def __init__(self, *, handler: RequestHandler, limiter: trio.CapacityLimiter, rng: random.Random) -> None:
        self._handler = handler
        self._limiter = limiter
        self._rng = rng
        self._queue: FairQueue[_Waiting] = FairQueue(max_cost=MAX_WAITING, max_cost_a_peer=_MAX_WAITING_A_PEER)
        self._overload = Overload()
        self._arrived = trio.Event()

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return len(self._queue)

    async def ask(self, asked: Asked, *, peer: Hashable, since: float) -> Reply:
        """Answer a request; ``peer`` is whose turn it takes, ``since`` when it began to wait (trio's clock).

        A request whose turn has come is finished, whatever becomes of who waits for the answer.
        """
        waiting = _Waiting(asked=asked, since=since)
        if not self._queue.offer(waiting, peer=peer, cost=_cost(asked)):
            return self._turn_away()
        self._arrived.set()
        await waiting.done.wait()
        assert waiting.reply is not None
        return waiting.reply

    async def run(self) -> None:
        """Answer what is asked, until cancelled."""
        while True:
            if not len(self._queue):
                self._overload.idle()
                self._arrived = trio.Event()
                await self._arrived.wait()
            await self._answer(self._queue.take(most=_GROUP))

    async def _answer(self, group: list[_Waiting]) -> None:
        too_late = trio.current_time() - _PATIENCE_S
        for waiting in group:
            if waiting.since < too_late:
                self._finish(waiting, self._turn_away())
        group = [waiting for waiting in group if waiting.reply is None]
        if not group:
            return
        replies = await trio.to_thread.run_sync(self._handle, [each.asked for each in group], limiter=self._limiter)
        for waiting, reply in zip(group, replies, strict=True):
            self._finish(waiting, reply)

    def _handle(self, group: list[Asked]) -> list[Reply]:
        return self._handler.handle_all(group, at=datetime.now(UTC))

    def _finish(self, waiting: _Waiting, reply: Reply) -> None:
        waiting.reply = reply
        waiting.done.set()

    def _turn_away(self) -> Reply:
        retry_after_s = self._overload.turned_away(draw=self._rng.random())
        text = "the authority has too many requests waiting"
        return Refusal(RefusalCode.UNAVAILABLE, text, retry_after_s=retry_after_s).reply()


def _cost(asked: Asked) -> int:
    """In certificates; one that asks for none is not for free."""
    return max(len(asked.request.requests), 1) if isinstance(asked.request, SignWorkloads) else 1
