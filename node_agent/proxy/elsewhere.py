"""What the stories of tunnels ask of the other processes of this agent, where there are any (node_agent/workers)."""

import socket
from typing import Protocol

from node_agent.model import PeerAddress


class Elsewhere(Protocol):
    """Every process of the agent accepts tunnels; a shared one, and what its streams move to, are in one of them.

    Labels are those of tunnel/label.py; ``uid`` is the pod's that is dialled.
    """

    def began(self, uid: str, label: str) -> None:
        """A shared tunnel is here: what names it belongs here."""

    def ended(self, uid: str, label: str) -> None:
        """It is no more."""

    def pass_on(self, uid: str, label: str, connection: socket.socket, peer: PeerAddress, accepted_at: float) -> bool:
        """Take over a connection that names a shared tunnel which is not here; False: it is to be served here."""
