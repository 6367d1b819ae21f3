"""When a worker that ended is started again, and when that is hopeless.

Sans-I/O: callers pass ``now``, monotonic seconds.  One instance for all workers.

A crash is followed by a pause that doubles with each crash in the last minute.
So many of them mean that every start crashes, or every connection does: then
the agent had better end with an error than keep a half of itself alive.
"""

from collections import deque
from typing import Final

_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0
_MEMORY_S: Final = 60.0
_MOST_CRASHES: Final = 5  # a worker, in _MEMORY_S


class Restarts:
    """The crashes of the last minute, of ``workers`` workers."""

    def __init__(self, workers: int) -> None:
        self._most = workers * _MOST_CRASHES
        self._crashes: deque[float] = deque()
        self.total = 0

    def crashed(self, now: float) -> float | None:
        """Note a crash; return how many seconds to wait before the next start, None if that is hopeless."""
        self.total += 1
        self._crashes.append(now)
        while self._crashes[0] < now - _MEMORY_S:
            self._crashes.popleft()
        if len(self._crashes) > self._most:
            return None
        return min(_FIRST_PAUSE_S * 2.0 ** (len(self._crashes) - 1), _LONGEST_PAUSE_S)
