"""What clients felt: how long a connection took until its answer was there, or that none came.

A connection without an answer took longer than any other one: it counts in the
quantiles as infinitely long, so that failing quickly does not look fast.  One
that was being served when its server died is counted apart: no choice of an
endpoint could have saved it.
"""

import math
from collections.abc import Sequence


class Feelings:
    """Of all connections of a run, by when they began."""

    def __init__(self, seconds: float) -> None:
        self.cut = 0
        self._seconds = int(seconds)
        self._by_second: list[list[float]] = [[] for _ in range(self._seconds + 1)]

    def add(self, began: float, took_s: float | None) -> None:
        """A connection that began then; None: it had no answer."""
        self._by_second[int(began)].append(math.inf if took_s is None else took_s)

    @property
    def all(self) -> list[float]:
        return [each for second in self._by_second for each in second]

    def quantile(self, share: float) -> float:
        """Seconds; infinite if more than that had no answer."""
        return quantile(self.all, share)

    @property
    def errors(self) -> int:
        return sum(map(math.isinf, self.all))

    def over_time(self, share: float) -> list[float | None]:
        """The quantile of each second; None where it is infinite, or nobody came."""
        found = [quantile(each, share) for each in self._by_second[: self._seconds]]
        return [each if math.isfinite(each) else None for each in found]

    def errors_over_time(self) -> list[float]:
        """Percent of the connections of each second."""
        return [100.0 * sum(map(math.isinf, each)) / max(1, len(each)) for each in self._by_second[: self._seconds]]


def quantile(values: Sequence[float], share: float) -> float:
    """The nearest-rank quantile; infinite of nothing."""
    return sorted(values)[max(0, math.ceil(len(values) * share) - 1)] if values else math.inf
