"""How long a connection may be idle, live, stay half-closed, or wait for its bytes to be taken.

Nothing of this costs a connection anything while it moves bytes: one task looks
at all live connections from time to time, more often the shorter the shortest
of their times is.  A time is therefore kept to within a tenth of itself.

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

_SHARE: Final = 0.1  # how exactly a time is kept
_LOOK_S: Final = (0.02, 30.0)  # at most, and at least, so often


@dataclass(frozen=True, slots=True)
class Sight:
    """What can be seen of a connection at one moment; bytes up and down, and in both send queues."""

    up_bytes: int
    down_bytes: int
    up_queue: int
    down_queue: int
    is_half_closed: bool


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
            with trio.move_on_after(min(max(self._shortest_s * _SHARE, _LOOK_S[0]), _LOOK_S[1])):
                await self._shorter.wait()
            self._shortest_s = self._look_at_all(trio.current_time())

    def _look_at_all(self, now: float) -> float:
        """Returns the shortest time of those that are left."""
        shortest = math.inf
        for connection in list(self._live.connections):
            carried = connection.carried
            if carried is None:
                continue
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
        carried.watch = Watch(carried.timeouts, sight, began_at=carried.began_at, now=carried.began_at)
    return carried.watch.look(sight, now)
