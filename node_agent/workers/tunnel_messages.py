"""What workers and their parent tell each other so that a tunnel comes to the worker whose shared tunnel it belongs to.

    worker to parent                      parent to worker
    TunnelShared, SharedTunnelEnded
    PassOn (with the connection)    -->   TakeTunnel (with it) to another worker, then PassedOn to this one;
                                          or TakeTunnel to this one again: nobody has that shared tunnel
    Taken                           <--   TakeTunnel, if it came from another worker

Each connection that is under way is counted by who has sent it, until it is
answered: what a worker may have under way is bounded (passing.py, handover.py).
"""

from dataclasses import dataclass
from typing import Final

from node_agent.model import PeerAddress

MOST_UNDER_WAY: Final = 128
"""Connections that a worker has passed on and of which it has not heard, and those that it is to take and has not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelShared:
    """A shared tunnel of a pod is here; what names its label (tunnel/label.py) belongs here."""

    uid: str
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedTunnelEnded:
    """It is here no more."""

    uid: str
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PassOn:
    """A connection that was accepted for a pod and names a shared tunnel that is not here.  With its descriptor.

    ``accepted_at`` is monotonic, the same for all processes of a machine.
    """

    uid: str
    label: str
    peer: PeerAddress
    accepted_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A connection from another worker has arrived."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeTunnel:
    """Serve a connection as if you had accepted it, and do not pass it on.  With its descriptor.

    ``is_back``: it is one that you have passed on yourself.
    """

    uid: str
    peer: PeerAddress
    accepted_at: float
    is_back: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PassedOn:
    """A connection of yours is another worker's now, or was given up."""
