"""Which rows of a table are free: ranges are taken and given back, and not used again at once.

Sans-I/O.  Whoever has looked up an entry may still be reading its old rows when they are given back; ``rest_s`` is
long enough for that.
"""

from collections import deque


class RowSpace:
    """``size`` rows, of which none is taken at first."""

    def __init__(self, size: int, *, rest_s: float) -> None:
        self._free: list[tuple[int, int]] = [(0, size)]  # first and count, in order, never side by side
        self._resting: deque[tuple[float, int, int]] = deque()
        self._rest_s = rest_s

    def take(self, count: int, now: float) -> int | None:
        """The first of ``count`` rows side by side, None if there is no such place."""
        while self._resting and self._resting[0][0] <= now:
            _, first, length = self._resting.popleft()
            self._put_back(first, length)
        for index, (first, length) in enumerate(self._free):
            if length >= count:
                if length == count:
                    del self._free[index]
                else:
                    self._free[index] = (first + count, length - count)
                return first
        return None

    def reserve(self, first: int, count: int) -> bool:
        """Take these rows, which somebody before us has used; False if they are not free."""
        for index, (start, length) in enumerate(self._free):
            if start <= first and first + count <= start + length:
                parts = [(start, first - start), (first + count, start + length - first - count)]
                self._free[index : index + 1] = [each for each in parts if each[1]]
                return True
        return False

    def give_back(self, first: int, count: int, now: float) -> None:
        """They may be taken again after the rest."""
        self._resting.append((now + self._rest_s, first, count))

    def _put_back(self, first: int, count: int) -> None:
        at = 0
        while at < len(self._free) and self._free[at][0] < first:
            at += 1
        self._free.insert(at, (first, count))
        if at + 1 < len(self._free) and first + count == self._free[at + 1][0]:
            self._free[at : at + 2] = [(first, count + self._free[at + 1][1])]
        if at and sum(self._free[at - 1]) == first:
            self._free[at - 1 : at + 1] = [(self._free[at - 1][0], self._free[at - 1][1] + self._free[at][1])]
