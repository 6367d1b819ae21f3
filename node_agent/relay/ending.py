"""How a relayed connection ended, seen from neither end."""

from dataclasses import dataclass
from enum import StrEnum

from node_agent.frames import CutReason
from node_agent.relay.settlement import Settlement


class Ending(StrEnum):
    """Why a pair stopped; the story turns it into a CloseReason, which knows up from down."""

    COMPLETE = "complete"
    PLAIN_RESET = "plain_reset"
    """The application's socket (of a plain pair: the first socket) was reset."""
    PEER_RESET = "peer_reset"
    """The other side said RESET: its application did, or its agent, for ``Outcome.reason``."""
    TUNNEL_LOST = "tunnel_lost"
    """The tunnel broke, or ended without an EOF frame: never a clean end, bytes may be missing."""
    PROTOCOL_ERROR = "protocol_error"
    CUT = "cut"
    """``cut`` was called: the reason is with whoever called it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of a relay.

    ``leftover`` holds bytes that arrived behind the peer's EOF frame: the
    beginning of the tunnel's next connection.  The tunnel may be used again
    only after ``Ending.COMPLETE``.  ``reason``: with ``PEER_RESET``, why the
    peer agent cut the connection; None when the peer's application reset it.
    ``settlement``: after the reset of an application, the tunnel is its owner's
    again when this says so, and not before.
    """

    ending: Ending
    leftover: bytes = b""
    reason: CutReason | None = None
    settlement: Settlement | None = None
