"""Who is let in, and how much each may ask for.

Sans-I/O: callers pass ``now``, monotonic seconds.

    connected --TLS proved a node--> node's limits: connections, requests, certificates
        |
        +----proved nothing--------> address's limits: connections, requests; a refused attempt to join counts fivefold

A connection is billed to its address until it has proved a node; then the
address gets it back and the node is billed, so that a thousand nodes behind one
address are not taken for a flood.  The last quarter of all connections is for
those that have proved a node, and for addresses from which one was proved
lately: the renewals of nodes go on while somebody else floods the port.
"""

import ipaddress
from collections import Counter, OrderedDict
from collections.abc import Hashable
from typing import Final

from ca.authority.limits import MOST_PEERS, Buckets, LimitSettings
from ca.messages import MAX_REQUESTS
from ca.spiffe import SpiffeId

_UNPROVED_SHARE: Final = 0.75  # of all connections
_REFUSED_JOIN_COST: Final = 5.0  # a token has 256 random bits and can not be guessed; trying is not for free either


class Visit:
    """One connection; ``peer`` is who is billed, an address first and then maybe a node."""

    __slots__ = ("address", "node", "waited_s")

    def __init__(self, address: str) -> None:
        self.address = address
        self.node: SpiffeId | None = None
        self.waited_s = 0.0  # its client's patience that the handshake has used up

    @property
    def peer(self) -> Hashable:
        """Whose turn it is when this connection asks."""
        return self.node or self.address


class Admission:
    """Counts connections and holds the buckets."""

    def __init__(self, settings: LimitSettings) -> None:
        self._settings = settings
        self._unproved: Counter[str] = Counter()
        self._unproved_total = 0
        self._known: OrderedDict[str, None] = OrderedDict()  # addresses from which a node was proved, the latest last
        self._of_nodes: Counter[SpiffeId] = Counter()
        self._connections = 0
        self._arrivals = Buckets(a_minute=settings.address_connections_a_minute)
        self._joins = Buckets(a_minute=settings.address_requests_a_minute)
        self._requests = Buckets(a_minute=settings.node_requests_a_minute)
        self._certificates = Buckets(a_minute=settings.node_certificates_a_minute, least_burst=MAX_REQUESTS)

    @property
    def connections(self) -> int:
        """How many are open."""
        return self._connections

    def open(self, host: str, *, now: float) -> Visit | str:
        """Let a new connection in, to be ended with ``close``; or say which limit it is over."""
        address, settings = network_of(host), self._settings
        if self._connections >= settings.connections:
            return "connections"
        if address not in self._known and self._unproved_total >= settings.connections * _UNPROVED_SHARE:
            return "unproved_connections"
        if self._unproved[address] >= settings.address_connections:
            return "address_connections"
        if self._arrivals.take(address, now=now) > 0.0:
            return "address_connections_a_minute"
        self._connections += 1
        self._unproved[address] += 1
        self._unproved_total += 1
        return Visit(address)

    def prove(self, visit: Visit, node: SpiffeId, *, now: float) -> str | None:
        """TLS has proved that a connection is a node's; returns the limit that this is over, if any."""
        self._leave_address(visit.address)
        visit.node = node
        self._remember(visit.address)
        self._of_nodes[node] += 1
        if self._of_nodes[node] > self._settings.node_connections:
            return "node_connections"  # its address stays billed: it pays for handshakes that lead to nothing
        self._arrivals.charge(visit.address, cost=-1.0, now=now)
        return None

    def close(self, visit: Visit) -> None:
        """A connection that was let in has ended."""
        self._connections -= 1
        if visit.node is None:
            self._leave_address(visit.address)
            return
        self._of_nodes[visit.node] -= 1
        if not self._of_nodes[visit.node]:
            del self._of_nodes[visit.node]

    def ask(self, visit: Visit, *, certificates: int, now: float) -> tuple[str, float] | None:
        """Bill one request; returns None, or the limit that it is over and in how many seconds it would not be."""
        if visit.node is None:
            wait_s = self._joins.take(visit.address, now=now)
            return ("address_requests_a_minute", wait_s) if wait_s else None
        if wait_s := self._requests.take(visit.node, now=now):
            return "node_requests_a_minute", wait_s
        if certificates and (wait_s := self._certificates.take(visit.node, cost=certificates, now=now)):
            return "node_certificates_a_minute", wait_s
        return None

    def refused_to_join(self, visit: Visit, *, now: float) -> None:
        """An attempt to become a node was refused: the next ones are worth waiting for."""
        self._joins.charge(visit.address, cost=_REFUSED_JOIN_COST - 1.0, now=now)

    def _remember(self, address: str) -> None:
        self._known[address] = None
        self._known.move_to_end(address)
        if len(self._known) > MOST_PEERS:
            self._known.popitem(last=False)

    def _leave_address(self, address: str) -> None:
        self._unproved_total -= 1
        self._unproved[address] -= 1
        if not self._unproved[address]:
            del self._unproved[address]


def network_of(host: str) -> str:
    """Who is billed for an address: itself, or the /64 of an IPv6 address, which is one customer's to choose from."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, 64), strict=False))
