"""The one thread that signs and writes, and the queue in front of it.

Theory of operation.  Signing holds the interpreter and the journal has one
writer, so that a second thread would only wait for the first.  What arrives
while the thread works waits in a ``FairQueue``; the thread then takes a group
of requests, in turns by peer, and writes what they add to the journal in one
transaction: while one group waits for the disk the next one gathers, and a slow
disk makes the groups larger, not the wait longer.

While connections wait to shake hands the groups are small: who has shaken hands
can be told when to come again, and who has not can only give up.

What does not fit the queue, or would be answered after its client has given up,
is turned away with the time to come again: an overloaded authority must not
spend its time on answers that nobody waits for.
"""

import random
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import trio

from ca.authority.errors import Refusal
from ca.authority.fair_queue import FairQueue
from ca.authority.overload import Overload
from ca.authority.requests import Asked, RequestHandler
from ca.messages import MAX_REQUESTS, RefusalCode, Reply, SignWorkloads

MAX_WAITING: Final = 2_000  # certificates; two seconds' worth, on a machine that signs 1000 a second
_MAX_WAITING_A_PEER: Final = 2 * MAX_REQUESTS
_LARGEST_GROUP: Final = 200  # certificates in one transaction
_GROUP_S: Final = 0.25  # of work: that long a request waits at least, when it comes at the wrong moment
_PATIENCE_S: Final = 4.0  # an agent gives up after 5 s


@dataclass(slots=True, kw_only=True, eq=False)
class _Waiting:
    asked: Asked
    since: float
    done: trio.Event = field(default_factory=trio.Event)
    reply: Reply | None = None


class Worker:
    """Answers requests, one group after the other.

    ``limiter`` is that of the one thread that may use the store;
    ``handshakes_waiting`` says how many connections wait to shake hands.
    ``run`` is to be running while requests are answered.
    """

    def __init__(
        self,
        *,
        handler: RequestHandler,
        limiter: trio.CapacityLimiter,
        rng: random.Random,
        handshakes_waiting: Callable[[], int],
    ) -> None:
        self._handler = handler
        self._handshakes_waiting = handshakes_waiting
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
        cost = _cost(asked)
        answered_in_s = self._overload.takes_s(self._queue.ahead(peer, cost=cost))
        too_late = self._age_s(waiting) + answered_in_s > _PATIENCE_S
        # One that is alone is tried, however slow the last ones were: how fast we are now has to be found out.
        if (too_late and len(self._queue)) or not self._queue.offer(waiting, peer=peer, cost=cost):
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
            group_s = 0.0 if self._handshakes_waiting() else _GROUP_S
            await self._answer(self._queue.take(most=min(self._overload.worth(group_s), _LARGEST_GROUP)))

    async def _answer(self, group: list[_Waiting]) -> None:
        for waiting in group:
            if self._age_s(waiting) > _PATIENCE_S:
                self._finish(waiting, self._turn_away())
        group = [waiting for waiting in group if waiting.reply is None]
        if not group:
            return
        began = trio.current_time()
        replies = await trio.to_thread.run_sync(self._handle, [each.asked for each in group], limiter=self._limiter)
        certificates = sum(_cost(each.asked) for each in group)
        self._overload.worked(certificates=certificates, seconds=trio.current_time() - began)
        for waiting, reply in zip(group, replies, strict=True):
            self._finish(waiting, reply)

    def _age_s(self, waiting: _Waiting) -> float:
        return trio.current_time() - waiting.since

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
