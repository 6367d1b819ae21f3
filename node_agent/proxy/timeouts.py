"""How long a connection may be idle, live, stay half-closed, or wait for its bytes to be taken.

Nothing of this costs a connection anything while it moves bytes: one task looks
at each live connection from time to time, more often the shorter the shortest
of its times is.  A time is therefore kept to within a tenth of itself.

*Stalled* is a direction whose bytes lie in the socket's send queue (SIOCOUTQ,
tcp(7)) and get fewer neither by an acknowledgement nor by anything that is
added: what TCP_USER_TIMEOUT would find, too, but with a reason of its own.
"""

import functools
import math
from dataclasses import dataclass
from typing import Final

import trio

from ca.manifests.traffic import Timeouts
from node_agent.errors import CloseReason
from node_agent.proxy.live import Carried, LiveConnection, LiveConnections
from node_agent.relay import Pair

_SHARE: Final = 0.05  # a tenth in all: one look late to see the last byte, one late to see that the time is up
_LOOK_S: Final = (0.02, 30.0)  # at most, and at least, so often
_LOOKS_A_TURN: Final = 256  # one or two milliseconds: then it is the others' turn


@dataclass(frozen=True, slots=True)
class Sight:
    """What can be seen of a connection at one moment; bytes up and down, and in both send queues."""

    up_bytes: int
    down_bytes: int
    up_queue: int
    down_queue: int
    is_half_closed: bool


_AT_FIRST: Final = Sight(0, 0, 0, 0, False)


class Watch:
    """The times of one connection.  Sans-I/O: ``now`` is monotonic seconds."""

    __slots__ = ("_began_at", "_half_closed_at", "_moved_at", "_sight", "_taken_at", "_timeouts")

    def __init__(self, timeouts: Timeouts, sight: Sight, *, began_at: float, now: float) -> None:
        self._timeouts = timeouts
        self._sight = sight
        self._began_at = began_at
        self._moved_at = now
        self._taken_at = [now, now]  # up, down
        self._half_closed_at = now if sight.is_half_closed else math.inf

    def look(self, sight: Sight, now: float) -> tuple[CloseReason, str] | None:
        """Take in what is seen now; returns why the connection is to be cut, if it is."""
        before, self._sight = self._sight, sight
        timeouts = self._timeouts
        if (sight.up_bytes, sight.down_bytes) != (before.up_bytes, before.down_bytes):
            self._moved_at = now
        if not sight.up_queue or (sight.up_queue, sight.up_bytes) != (before.up_queue, before.up_bytes):
            self._taken_at[0] = now
        if not sight.down_queue or (sight.down_queue, sight.down_bytes) != (before.down_queue, before.down_bytes):
            self._taken_at[1] = now
        if sight.is_half_closed and self._half_closed_at == math.inf:
            self._half_closed_at = now
        if _is_over(timeouts.lifetime_s, self._began_at, now):
            return CloseReason.LIFETIME_EXCEEDED, f"older than {timeouts.lifetime_s:g} s (timeouts.lifetime)"
        if _is_over(timeouts.stalled_write_s, min(self._taken_at), now):
            return (
                CloseReason.STALLED_WRITE,
                f"bytes were not taken for {timeouts.stalled_write_s:g} s (timeouts.stalledWrite)",
            )
        if _is_over(timeouts.half_closed_s, max(self._moved_at, self._half_closed_at), now):
            return (
                CloseReason.IDLE_TIMEOUT,
                f"half-closed and idle for {timeouts.half_closed_s:g} s (timeouts.halfClosed)",
            )
        if _is_over(timeouts.idle_s, self._moved_at, now):
            return CloseReason.IDLE_TIMEOUT, f"idle for {timeouts.idle_s:g} s (timeouts.idle)"
        return None


def _is_over(limit_s: float, since: float, now: float) -> bool:
    return 0.0 < limit_s <= now - since


@functools.lru_cache(maxsize=1024)  # a few for each policy, asked for each connection
def shortest_s(timeouts: Timeouts) -> float:
    """The shortest of the times, infinite if there is none."""
    times = (timeouts.idle_s, timeouts.lifetime_s, timeouts.half_closed_s, timeouts.stalled_write_s)
    return min((each for each in times if each > 0.0), default=math.inf)


def _look_every_s(shortest: float) -> float:
    return min(max(shortest * _SHARE, _LOOK_S[0]), _LOOK_S[1])


class Timekeeper:
    """Looks at the live connections and cuts those whose time is up."""

    def __init__(self, live: LiveConnections) -> None:
        self._live = live
        self._shortest_s = math.inf
        self._shorter = trio.Event()

    def keep(self, connection: LiveConnection, timeouts: Timeouts, pair: Pair) -> None:
        """The bytes of a connection begin to move: keep its times from now on."""
        connection.carried = Carried(pair=pair, timeouts=timeouts, began_at=trio.current_time())
        shortest = shortest_s(timeouts)
        if shortest < self._shortest_s:
            self._shortest_s = shortest
            self._shorter.set()

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            self._shorter = trio.Event()
            step_s = _look_every_s(self._shortest_s)
            with trio.move_on_after(step_s):
                await self._shorter.wait()
            self._shortest_s = math.inf  # others may come while we look
            self._shortest_s = min(await self._look_at_all(trio.current_time(), step_s), self._shortest_s)

    async def _look_at_all(self, now: float, step_s: float) -> float:
        """Look at those whose turn it is, the next time in ``step_s``; returns the shortest time of all."""
        shortest = math.inf
        looks = 0
        for connection in list(self._live.connections):
            if looks == _LOOKS_A_TURN:
                looks = 0
                await trio.lowlevel.checkpoint()
            carried = connection.carried
            if carried is None or connection not in self._live.connections:
                continue
            if now < carried.look_at:
                shortest = min(shortest, shortest_s(carried.timeouts))
                continue
            looks += 1
            carried.look_at = now + _look_every_s(shortest_s(carried.timeouts)) - step_s
            reason = _look(connection, now)
            if reason is not None:
                connection.cut(*reason)
            else:
                shortest = min(shortest, shortest_s(carried.timeouts))
        return shortest


def _look(connection: LiveConnection, now: float) -> tuple[CloseReason, str] | None:
    carried = connection.carried
    assert carried is not None
    pair = carried.pair
    up_queue, down_queue = pair.send_queues() if carried.timeouts.stalled_write_s else (0, 0)
    sight = Sight(pair.up_bytes, pair.down_bytes, up_queue, down_queue, pair.is_half_closed)
    if carried.watch is None:
        carried.watch = Watch(carried.timeouts, _AT_FIRST, began_at=carried.began_at, now=carried.began_at)
    return carried.watch.look(sight, now)
