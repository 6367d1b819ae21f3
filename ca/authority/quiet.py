"""Log lines that a peer can cause at will: the first ones are written, the others counted.

Sans-I/O: callers pass ``now``, monotonic seconds.
"""

from collections import Counter
from typing import Final

from ca.authority.limits import Buckets

_LINES_A_MINUTE_OF_A_PEER: Final = 60
_LINES_A_MINUTE: Final = 600


class LogGate:
    """Decides which lines are written, by event and peer, and remembers how many were not."""

    def __init__(self, *, of_a_peer: int = _LINES_A_MINUTE_OF_A_PEER, of_all: int = _LINES_A_MINUTE) -> None:
        """So many lines a minute, a quarter of them at once."""
        self._of_peers = Buckets(a_minute=of_a_peer)
        self._of_all = Buckets(a_minute=of_all)
        self._left_out: Counter[str] = Counter()

    def admits(self, event: str, peer: str, *, now: float) -> bool:
        """Whether to write a line; if not, it is counted."""
        if self._of_peers.take((event, peer), now=now) or self._of_all.take(event, now=now):
            self._left_out[event] += 1
            return False
        return True

    def left_out(self) -> dict[str, int]:
        """How many lines were left out since the last call, by event."""
        found, self._left_out = dict(self._left_out), Counter()
        return found
