"""When to come again, for those who are turned away.

Sans-I/O.  If a thousand agents are told the same time they come back together,
and are turned away together.  Each is told a time of its own, within a window
that grows with how many were turned away since the authority last had nothing
to do: so that about ``_COME_BACK_PER_S`` come a second.
"""

from typing import Final

_FIRST_S: Final = 1.0  # nobody comes back before this
_SHORTEST_WINDOW_S: Final = 4.0
_LONGEST_WINDOW_S: Final = 28.0  # an agent obeys up to 30 s
_COME_BACK_PER_S: Final = 100.0  # connections; with their handshakes a fifth of a core


class Overload:
    """How many were turned away lately."""

    def __init__(self) -> None:
        self._turned_away = 0

    def idle(self) -> None:
        """Nothing waits: it is over."""
        self._turned_away = 0

    def turned_away(self, *, draw: float) -> float:
        """Count one; returns after how many seconds it is to come again.  ``draw`` is random, in [0, 1)."""
        self._turned_away += 1
        window_s = min(max(self._turned_away / _COME_BACK_PER_S, _SHORTEST_WINDOW_S), _LONGEST_WINDOW_S)
        return _FIRST_S + draw * window_s
