"""Who is served next: requests that wait, by peer, each peer in its turn.

Sans-I/O.  Deficit round robin (Shreedhar and Varghese, 1995): a peer whose turn
it is may spend ``_QUANTUM`` certificates; what it does not spend it keeps for
its next turn, as long as it has something waiting.  So a node that asks for
500 certificates a hundred times, and one that asks for one, are served at the
same rate of certificates, and the one waits for a turn of each, not for the
five hundred.

What waits is bounded twice: by what all may have waiting, and by what one peer
may: the first is the longest wait, the second keeps a greedy peer from filling
the room of the others.
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

        Something always fits into an empty line, whatever it costs: else it would never be served.
        """
        line = self._lines.get(peer)
        if line is not None and line.cost + cost > self._max_cost_a_peer:
            return False
        if self._cost and self._cost + cost > self._max_cost:
            return False
        if line is None:
            line = self._lines[peer] = _Line()
        line.items.append((item, cost))
        line.cost += cost
        self._cost += cost
        self._items += 1
        return True

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
