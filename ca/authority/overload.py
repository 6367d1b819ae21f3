"""Who is turned away because it would be answered too late, and when it is to come again.

Sans-I/O.  How long something will take is told by how long the last ones took:
an authority on a slow or busy machine turns away sooner.

If a thousand agents are told the same time they come back together,
and are turned away together.  Each is told a time of its own, within a window
that grows with how many were turned away since the authority last had nothing
to do: so that about ``_COME_BACK_PER_S`` come a second.
"""

from typing import Final

_FIRST_S: Final = 1.0  # nobody comes back before this
_SHORTEST_WINDOW_S: Final = 4.0
_LONGEST_WINDOW_S: Final = 28.0  # an agent obeys up to 30 s
_FIRST_GUESS_S: Final = 0.001
_SMALLEST_GROUP: Final = 20
_WEIGHT: Final = 0.2  # of the latest group
_COME_BACK_PER_S: Final = 100.0  # connections; with their handshakes a fifth of a core


class Overload:
    """How many were turned away lately."""

    def __init__(self) -> None:
        self._turned_away = 0
        self._a_certificate_s = _FIRST_GUESS_S

    def worked(self, *, certificates: int, seconds: float) -> None:
        """So many were signed and written in so many seconds."""
        if certificates < _SMALLEST_GROUP:
            return  # it says how long the disk takes, not how fast we are
        self._a_certificate_s += _WEIGHT * (seconds / certificates - self._a_certificate_s)

    def takes_s(self, certificates: int) -> float:
        """How long as many will take."""
        return certificates * self._a_certificate_s

    def worth(self, seconds: float) -> int:
        """How many certificates are that much work; never so few that nothing could be learnt from them."""
        return max(int(seconds / self._a_certificate_s), _SMALLEST_GROUP)

    def idle(self) -> None:
        """Nothing waits: it is over."""
        self._turned_away = 0

    def turned_away(self, *, draw: float) -> float:
        """Count one; returns after how many seconds it is to come again.  ``draw`` is random, in [0, 1)."""
        self._turned_away += 1
        window_s = min(max(self._turned_away / _COME_BACK_PER_S, _SHORTEST_WINDOW_S), _LONGEST_WINDOW_S)
        return _FIRST_S + draw * window_s
