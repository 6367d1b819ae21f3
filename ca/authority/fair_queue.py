"""Who is served next: requests that wait, by peer, each peer in its turn.

Sans-I/O.  Deficit round robin (Shreedhar and Varghese, 1995): a peer whose turn
it is may spend ``_QUANTUM`` certificates; what it does not spend it keeps for
its next turn, as long as it has something waiting.  So a node that asks for
500 certificates a hundred times, and one that asks for one, are served at the
same rate of certificates, and the one waits for a turn of each, not for the
five hundred.

What waits is bounded: by what all may have waiting, and by what one peer may.
When the room is full, a peer that has less waiting than an equal share of the
room is let in nevertheless, into as much room again: a few greedy peers can not
keep the others out.
"""

from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

T = TypeVar("T")

_QUANTUM: Final = 50  # certificates; ~30 ms of work


class _Line(Generic[T]):
    """What one peer has waiting."""

    __slots__ = ("cost", "credit", "items")

    def __init__(self) -> None:
        self.items: deque[tuple[T, int]] = deque()
        self.cost = 0
        self.credit = 0


class FairQueue(Generic[T]):
    """Items with a cost of 1 or more; the cost of an item is what its peer is billed for it."""

    def __init__(self, *, max_cost: int, max_cost_a_peer: int) -> None:
        self._max_cost = max_cost
        self._max_cost_a_peer = max_cost_a_peer
        self._lines: OrderedDict[Hashable, _Line[T]] = OrderedDict()
        self._cost = 0
        self._items = 0

    def __len__(self) -> int:
        return self._items

    @property
    def cost(self) -> int:
        """Of all that waits."""
        return self._cost

    def offer(self, item: T, *, peer: Hashable, cost: int) -> bool:
        """Let ``item`` wait; False if there is no room for it.

        When nothing waits there is, whatever it costs: else it would never be served.
        """
        line = self._lines.get(peer)
        if line is not None and line.cost + cost > self._max_cost_a_peer:
            return False
        if not self._has_room(0 if line is None else line.cost, cost, peers=len(self._lines) + (line is None)):
            return False
        if line is None:
            line = self._lines[peer] = _Line()
        line.items.append((item, cost))
        line.cost += cost
        self._cost += cost
        self._items += 1
        return True

    def ahead(self, peer: Hashable, *, cost: int) -> int:
        """About what is served until an item of ``cost`` is that ``peer`` offers now, that item included."""
        line = self._lines.get(peer)
        own = cost if line is None else line.cost + cost
        turns = own + _QUANTUM  # what each of the others is served meanwhile, if it has so much
        return own + sum(min(other.cost, turns) for other in self._lines.values() if other is not line)

    def _has_room(self, waiting: int, cost: int, *, peers: int) -> bool:
        after = self._cost + cost
        if not self._cost or after <= self._max_cost:
            return True
        return waiting + cost <= self._max_cost / peers and after <= 2 * self._max_cost

    def take(self, *, most: int) -> list[T]:
        """What is to be served together now: items worth up to ``most``, and at least one if any waits."""
        taken: list[T] = []
        room = most
        while self._lines:
            peer, line = next(iter(self._lines.items()))
            if line.credit < line.items[0][1]:
                line.credit += _QUANTUM
            while line.items and line.items[0][1] <= line.credit:
                item, cost = line.items[0]
                if taken and cost > room:
                    return taken  # still this peer's turn
                line.items.popleft()
                line.cost -= cost
                line.credit -= cost
                self._cost -= cost
                self._items -= 1
                room -= cost
                taken.append(item)
            if line.items:
                self._lines.move_to_end(peer)
            else:
                del self._lines[peer]  # and its credit: nobody saves up by being idle
        return taken
