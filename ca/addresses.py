"""Several replicas of the CA: which one to ask first.

Sans-I/O: no clock, no socket.  Callers pass ``now`` (monotonic seconds).

Each request draws its replica, so that they share the load without knowing of
each other.  One that failed goes to the end of the line for ``AVOID_S``: asked
only when all others fail too, so that a replica which is down costs one request
of an agent its time, not every second one.  Of a name with IPv6 and IPv4
addresses the resolver's family comes first (RFC 6724).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

AVOID_S: Final = 30.0  # a restart takes seconds; much longer, and the survivors would carry the load after it


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """Where one replica listens: ``ip`` is what ``name`` of the configuration resolved to."""

    name: str
    ip: str
    port: int

    def __str__(self) -> str:
        known_as = self.ip if self.name == self.ip else f"{self.name} ({self.ip})"
        return f"the CA at {known_as} port {self.port}"


class Replicas:
    """Remembers which of them failed lately."""

    def __init__(self, *, rng: Random) -> None:
        self._rng = rng
        self._failed_at: dict[Replica, float] = {}

    def order(self, found: Iterable[Replica], *, now: float) -> Sequence[Replica]:
        """The order in which to try them, each once; ``found`` in the resolver's order."""
        every = list(dict.fromkeys(found))
        self._failed_at = {each: at for each, at in self._failed_at.items() if now - at < AVOID_S}
        families = list(dict.fromkeys(":" in each.ip for each in every))
        drawn = {each: self._rng.random() for each in every}

        def rank(each: Replica) -> tuple[float, int, float]:
            return (self._failed_at.get(each, -1.0), families.index(":" in each.ip), drawn[each])

        return sorted(every, key=rank)

    def failed(self, replica: Replica, *, now: float) -> None:
        """It did not answer, or said that it can not serve now."""
        self._failed_at[replica] = now

    def worked(self, replica: Replica) -> None:
        """It answered."""
        self._failed_at.pop(replica, None)
