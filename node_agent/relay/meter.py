"""A connection whose bytes are counted as they move: one that has to wait, or ends after so many.

A pair without a meter has none of this: the meter stands between the loop and
the handlers of the pair, and asks after each event how many bytes it moved.

    moving --the meter says wait--> paused (neither side is read) --the time is up--> moving
    moving --the meter says enough--> cut
"""

from typing import Final, Protocol

from node_agent.errors import CloseReason
from node_agent.relay.loop import EventHandler, RelayLoop

_LONGEST_PAUSE_S: Final = 5.0  # the loop's calls can not be taken back: a pair that is over is not kept for longer


class Meter(Protocol):
    """What a connection's bytes cost.  ``most_bytes`` bounds one read."""

    most_bytes: int

    def moved(self, moved_bytes: int) -> float | CloseReason:
        """Take ``moved_bytes``, both ways together; returns for how many seconds to pause, or why to cut."""


class Meterable(Protocol):
    """A pair, as the meter sees it; harmless when it is over."""

    @property
    def moved_bytes(self) -> int:
        """Both ways together."""

    def pause(self) -> None:
        """Read neither side."""

    def resume(self) -> None: ...

    def abort(self, reason: CloseReason) -> None:
        """Cut it, from within the loop."""

    @property
    def is_over(self) -> bool: ...


class Metered:
    """Holds one pair to its meter."""

    __slots__ = ("_counted", "_is_paused", "_loop", "_meter", "_pair")

    def __init__(self, *, loop: RelayLoop, pair: Meterable, meter: Meter) -> None:
        self._loop = loop
        self._pair = pair
        self._meter = meter
        self._counted = 0
        self._is_paused = False

    def handler(self, inner: EventHandler) -> EventHandler:
        """What the loop is to call instead of ``inner``."""

        def metered(event: int) -> None:
            inner(event)
            self.look()

        return metered

    def look(self) -> None:
        """Count what has been moved, and do what that means."""
        moved_bytes = self._pair.moved_bytes
        since, self._counted = moved_bytes - self._counted, moved_bytes
        if since and (verdict := self._meter.moved(since)):
            self._obey(verdict)

    def start(self) -> None:
        """Called once, when the pair is with the loop: others may have used up what there is."""
        self._loop.call_soon(lambda: self._obey(self._meter.moved(0)))

    def _obey(self, verdict: float | CloseReason) -> None:
        if isinstance(verdict, CloseReason):
            self._pair.abort(verdict)
        elif verdict > 0 and not self._is_paused and not self._pair.is_over:
            self._is_paused = True
            self._pair.pause()
            self._loop.call_later(min(verdict, _LONGEST_PAUSE_S), self._go_on)

    def _go_on(self) -> None:
        """The time is up: go on, unless others have used up meanwhile what has come."""
        self._is_paused = False
        self._obey(self._meter.moved(0))
        if not self._is_paused:
            self._pair.resume()
            self.look()
