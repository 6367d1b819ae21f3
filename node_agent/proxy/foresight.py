"""What the source's agent need not ask the destination's for: a storm of connections that are all denied.

The destination decides, and its records and counters show who was refused; so
each connection is asked for there, and the answer is the destination's.  A
program that tries again and again would cost the destination a verdict and a
record each time: past ``_ASKED_A_S`` denials within a second, of one identity to
one workload's port, the source's agent asks its own copy of the policies first,
and refuses what that denies.  What it would allow is asked for as ever.
"""

from typing import Final, NamedTuple

from ca.spiffe import SpiffeId
from node_agent.proxy.policy_gate import PolicyGate
from node_agent.telemetry.connection_record import ConnectionRecord

_ASKED_A_S: Final = 10
_WINDOW_S: Final = 1.0
_MOST_KEYS: Final = 1_000


class _Key(NamedTuple):
    source: SpiffeId | None
    destination_uid: str
    port: int


class Foresight:
    """Counts denials; ``now`` is monotonic seconds."""

    def __init__(self, gate: PolicyGate) -> None:
        self._gate = gate
        self._denials: dict[_Key, tuple[float, int]] = {}

    def spare(self, record: ConnectionRecord, now: float) -> None:
        """Raise PolicyDenied if the destination need not be asked."""
        if not self._denials:
            return
        key = _key(record)
        since, count = self._denials.get(key, (now, 0))
        if now - since >= _WINDOW_S:
            self._denials.pop(key, None)
        elif count >= _ASKED_A_S:
            self._gate.foresee(record)

    def denied(self, record: ConnectionRecord, now: float) -> None:
        """The destination has denied it."""
        key = _key(record)
        since, count = self._denials.get(key, (now, 0))
        if now - since >= _WINDOW_S:
            since, count = now, 0
        if key not in self._denials and len(self._denials) >= _MOST_KEYS:
            self._denials.clear()  # so many programs at once: each may ask some more
        self._denials[key] = (since, count + 1)


def _key(record: ConnectionRecord) -> _Key:
    destination, endpoint = record.destination, record.endpoint
    return _Key(record.source_identity, destination.uid if destination else "", endpoint.port if endpoint else 0)
