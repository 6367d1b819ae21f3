"""How much one peer may ask for: token buckets, one a peer, in a table that does not grow.

Sans-I/O: callers pass ``now``, monotonic seconds.

A bucket holds ``burst`` tokens and fills with ``a_minute``; what it holds is
not stored but when it will be full (ITU-T I.371, the generic cell rate
algorithm): one number a peer, and a peer that is not in the table has a full
bucket.  So a peer that was quiet long enough can be forgotten without anybody
gaining by it.  When the table is full the one that asked least recently is
forgotten: a flood of addresses gains a bucket for each address, as it would
without the table, and nothing else.
"""

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Final

MOST_PEERS: Final = 16_384  # ~3 MB a table
_BURST_S: Final = 15.0  # a quarter of a minute's worth at once: a node's pods come in groups


@dataclass(frozen=True, slots=True)
class Limit:
    """One key under ``[limits]``: its default and its bounds."""

    default: int
    at_least: int
    at_most: int


# An address is an IPv4 address or an IPv6 /64; it is billed for those who have not proved a node.
LIMITS: Final[Mapping[str, Limit]] = {
    "connections": Limit(2048, 16, 100_000),  # each agent holds one, and opens another when it asks
    "address_connections": Limit(64, 4, 100_000),
    "address_connections_a_minute": Limit(600, 60, 1_000_000),
    "address_requests_a_minute": Limit(600, 60, 1_000_000),
    "node_connections": Limit(32, 4, 10_000),
    "node_requests_a_minute": Limit(6_000, 60, 1_000_000),
    "node_certificates_a_minute": Limit(12_000, 600, 10_000_000),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """``[limits]`` of ca.toml."""

    connections: int = LIMITS["connections"].default
    address_connections: int = LIMITS["address_connections"].default
    address_connections_a_minute: int = LIMITS["address_connections_a_minute"].default
    address_requests_a_minute: int = LIMITS["address_requests_a_minute"].default
    node_connections: int = LIMITS["node_connections"].default
    node_requests_a_minute: int = LIMITS["node_requests_a_minute"].default
    node_certificates_a_minute: int = LIMITS["node_certificates_a_minute"].default


class Buckets:
    """One token bucket for each peer that was here lately."""

    def __init__(self, *, a_minute: float, least_burst: float = 1.0, most_peers: int = MOST_PEERS) -> None:
        self._a_second = a_minute / 60.0
        self._burst = max(self._a_second * _BURST_S, least_burst)
        self._most_peers = most_peers
        self._full_at: OrderedDict[Hashable, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, peer: Hashable, *, cost: float = 1.0, now: float) -> float:
        """Take ``cost`` tokens; returns 0.0, or in how many seconds there will be enough, and then takes none.

        What costs more than a bucket holds is taken from a full one: else it could never be.
        """
        wait_s = self.wait_s(peer, cost=cost, now=now)
        if wait_s > 0.0:
            self._full_at.move_to_end(peer)  # who is over the limit and goes on asking is not forgotten
            return wait_s
        self.charge(peer, cost=min(cost, self._burst), now=now)
        return 0.0

    def wait_s(self, peer: Hashable, *, cost: float = 1.0, now: float) -> float:
        """In how many seconds there will be ``cost`` tokens; 0.0 or less when there are."""
        lacking_s = max(self._full_at.get(peer, now) - now, 0.0)
        return lacking_s - (self._burst - min(cost, self._burst)) / self._a_second

    def charge(self, peer: Hashable, *, cost: float, now: float) -> None:
        """Take tokens whether they are there or not (a debt is paid by waiting longer); negative gives back."""
        full_at = max(self._full_at.pop(peer, now), now) + cost / self._a_second
        if full_at <= now:
            return
        if len(self._full_at) >= self._most_peers:
            self._full_at.popitem(last=False)
        self._full_at[peer] = full_at
