"""Whether connections to a port tend to become bulk: then each has a tunnel of its own from the start.

Sans-I/O.  To move in the middle costs a connection two round trips and some
frames, which is nothing for one that goes on for long, and a third more CPU for
one that ends after some hundred KB.

    sharing --more than half of the last moved--> own, but every sixteenth tries
    own --most of those that tried did not move--> sharing
"""

from dataclasses import dataclass
from typing import Final

_WEIGHT: Final = 1 / 8  # of the last connection
_MOSTLY: Final = 0.5
_TRY_EVERY: Final = 16
_MOST_PORTS: Final = 64  # to one pod; who uses more is not worth the memory


@dataclass(slots=True)
class _Habit:
    moved: float = 0.0  # which part of the last connections, weighted exponentially
    skipped: int = 0


class Habits:
    """What is known of the connections between two workloads, by the port they go to."""

    __slots__ = ("_ports",)

    def __init__(self) -> None:
        self._ports: dict[int, _Habit] = {}

    def may_share(self, port: int) -> bool:
        """Whether the next connection to ``port`` is to begin in a shared tunnel; asked once for each."""
        habit = self._ports.get(port)
        if habit is None or habit.moved <= _MOSTLY:
            return True
        habit.skipped = (habit.skipped + 1) % _TRY_EVERY
        return not habit.skipped

    def opened(self, port: int) -> None:
        """A connection has begun in a shared tunnel."""
        habit = self._ports.get(port)
        if habit is not None:
            habit.moved *= 1 - _WEIGHT

    def moved(self, port: int) -> None:
        """One of those wants a tunnel of its own; told once for each."""
        habit = self._ports.get(port)
        if habit is None:
            if len(self._ports) >= _MOST_PORTS:
                self._ports.clear()
            habit = self._ports[port] = _Habit()
        habit.moved += _WEIGHT
