"""A workload's network, as the stories see it; where it really is, is its capture's business."""

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from node_agent.capture.netns import NetworkNamespace
from node_agent.model import OriginalDestination, PeerAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class Listeners:
    """The listeners of a workload, as many of each kind; bound, listening, non-blocking."""

    outbound: tuple[socket.socket, ...]
    inbound_plaintext: tuple[socket.socket, ...]
    tunnel: tuple[socket.socket, ...]

    @classmethod
    def of(cls, in_order: list[socket.socket]) -> "Listeners":
        """Undo ``in_order``."""
        each = len(in_order) // 3
        assert len(in_order) == 3 * each > 0
        return cls(
            outbound=tuple(in_order[:each]),
            inbound_plaintext=tuple(in_order[each : 2 * each]),
            tunnel=tuple(in_order[2 * each :]),
        )

    @property
    def in_order(self) -> tuple[socket.socket, ...]:
        """All of them, in the order of the fields."""
        return self.outbound + self.inbound_plaintext + self.tunnel

    def by_kind(self) -> Iterator[tuple[str, socket.socket]]:
        """Each with the name of its field."""
        for kind in ("outbound", "inbound_plaintext", "tunnel"):
            yield from ((kind, each) for each in getattr(self, kind))

    def close(self) -> None:
        for listener in self.in_order:
            listener.close()


class WorkloadNetwork(Protocol):
    """Makes sockets of one workload.  Sockets handed out belong to whoever asked for them."""

    mode: str  # of capture; another process makes the same of its namespace by it (modes.py)

    @property
    def namespace(self) -> NetworkNamespace:
        """The network namespace that the sockets are in."""

    def close(self) -> None: ...

    def listen(self) -> Listeners:
        """Bind all listeners or none; raises OSError."""

    def upstream_socket(self, destination_ip: str) -> socket.socket:
        """Return a socket to connect to ``destination_ip`` with, exempt from redirection, from the workload."""

    def application_socket(self, destination_ip: str, *, source_ip: str) -> socket.socket:
        """Return a socket to connect to the workload's application with, which sees ``source_ip`` as its client."""

    def outbound_destination(self, connection: socket.socket, peer: PeerAddress) -> OriginalDestination:
        """Where the workload wanted to go; raises ConnectionFailure when nobody knows."""

    def inbound_destination(self, connection: socket.socket, peer: PeerAddress) -> OriginalDestination:
        """Where somebody wanted to go who came in plaintext; raises ConnectionFailure when nobody knows."""

    def as_client(self, peer: PeerAddress, destination: OriginalDestination) -> PeerAddress:
        """How the workload's connection from ``peer`` looks to the destination."""
