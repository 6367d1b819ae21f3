"""Counters into rates, with a short history.

Sans-I/O.  Each counter belongs to one agent, and is measured by that agent's own
clock: an agent that is away for a while adds nothing, and nothing jumps when it
is back.  A counter that went back is that of an agent that was started anew.
"""

from collections import deque
from collections.abc import Mapping
from typing import Final, NamedTuple

_WINDOW: Final = 4  # readings: a rate is that of the last six seconds or so
_HISTORY: Final = 60  # rates: two minutes
_FORGOTTEN_AFTER: Final = 150  # rounds without a word of it: five minutes


class Counters(NamedTuple):
    """What one agent has counted of one edge since it started."""

    opened: float = 0.0
    sent_bytes: float = 0.0
    received_bytes: float = 0.0
    denied: float = 0.0
    failed: float = 0.0

    def plus(self, other: "Counters") -> "Counters":
        return Counters(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


NOTHING: Final = Counters()


class Meter:
    """The last readings of one counter set at one agent."""

    __slots__ = ("_readings", "round")

    def __init__(self) -> None:
        self._readings: deque[tuple[float, Counters]] = deque(maxlen=_WINDOW)
        self.round = 0

    def take(self, at: float, counters: Counters) -> None:
        """Note a reading; ``at`` is the agent's clock."""
        if self._readings:
            last_at, last = self._readings[-1]
            if at == last_at:
                return
            if at < last_at or any(new < old for new, old in zip(counters, last, strict=True)):
                self._readings.clear()
        self._readings.append((at, counters))

    def rate(self) -> Counters | None:
        """By second; None before the second reading."""
        if len(self._readings) < 2:
            return None
        (began, first), (ended, last) = self._readings[0], self._readings[-1]
        return Counters(*((new - old) / (ended - began) for new, old in zip(last, first, strict=True)))


class Rates:
    """The meters of all edges at all agents, and the histories of what they come to."""

    def __init__(self) -> None:
        self._meters: dict[tuple[str, ...], Meter] = {}
        self._histories: dict[str, deque[Counters]] = {}
        self._round = 0

    def begin(self) -> None:
        """A new round of readings; meters that nobody speaks of any more are forgotten."""
        self._round += 1
        self._meters = {
            key: meter for key, meter in self._meters.items() if self._round - meter.round < _FORGOTTEN_AFTER
        }

    def read(self, key: tuple[str, ...], at: float, counters: Counters) -> Counters | None:
        """Note a reading of one agent, and return the rate."""
        meter = self._meters.setdefault(key, Meter())
        meter.round = self._round
        meter.take(at, counters)
        return meter.rate()

    def record(self, rates: Mapping[str, Counters]) -> None:
        """Note what the rates of this round come to, by edge of the picture; edges that are gone are forgotten."""
        self._histories = {name: self._histories.get(name) or deque(maxlen=_HISTORY) for name in rates}
        for name, rate in rates.items():
            self._histories[name].append(rate)

    def history(self, name: str) -> list[Counters]:
        """The rates of the last two minutes, oldest first."""
        return list(self._histories.get(name, ()))
