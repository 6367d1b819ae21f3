"""What the authority counts while it serves; ``metrics.py`` shows it.

Plain numbers, changed on the trio thread and in the worker's; each has one writer.
"""

from bisect import bisect_left
from collections import Counter
from itertools import accumulate
from typing import Final

LATENCY_BOUNDS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Latencies:
    """A histogram of seconds."""

    def __init__(self) -> None:
        self._counts = [0] * (len(LATENCY_BOUNDS_S) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect_left(LATENCY_BOUNDS_S, seconds)] += 1
        self.sum_s += seconds

    def cumulative(self) -> list[tuple[str, int]]:
        """How many took up to each bound, as Prometheus wants them; the last is all."""
        bounds = [*(f"{bound:g}" for bound in LATENCY_BOUNDS_S), "+Inf"]
        return list(zip(bounds, accumulate(self._counts), strict=True))


class Statistics:
    """Since the start of the process."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()  # by type of request, and refusal code or "ok"
        self.certificates: Counter[str] = Counter()  # issued, by type of request
        self.refused_certificates: Counter[str] = Counter()  # within requests that were answered, by refusal code
        self.connections: Counter[str] = Counter()  # by outcome
        self.over_limit: Counter[str] = Counter()  # by limit
        self.log_lines_left_out = 0
        self.latencies = Latencies()
        self.handshakes = Latencies()
