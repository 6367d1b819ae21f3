"""What a half of a tunnel's pair tells the pair; while bytes just move there is none."""

from enum import Enum, auto


class News(Enum):
    """Something other than bytes happened, which both halves may have to hear of."""

    CHANGED = auto()
    """This direction began or ceased to hold bytes, or it ended."""
    PLAIN_BROKEN = auto()
    """The application's socket was reset."""
    TUNNEL_BROKEN = auto()
    """A write to the tunnel failed; the peer may have said why, unread."""
    TUNNEL_ENDED = auto()
    """All that the peer said was read, and its end, in whatever way."""
    PEER_RESET = auto()
    """RESET: the peer's application reset the connection; the tunnel can be saved."""
    PEER_CUT = auto()
    """RESET with a payload: the peer's agent cut the connection, and the tunnel with it."""
    PROTOCOL_ERROR = auto()
