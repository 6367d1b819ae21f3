"""How a relayed connection ended, seen from neither end."""

import socket
import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from node_agent.errors import CloseReason

_LINGER_RESET: Final = struct.pack("ii", 1, 0)
_NO_LINGER: Final = struct.pack("ii", 0, 0)


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
    """

    ending: Ending
    leftover: bytes = b""
    reason: CloseReason | None = None


def reset_on_close(sock: socket.socket) -> None:
    """Make ``close`` send RST instead of FIN: an aborted stream must not look complete (socket(7), SO_LINGER).

    The sockets of applications are born so (capture/pod_network.py): when the
    agent is killed, the kernel closes them, and that must not look complete either.
    """
    _linger(sock, _LINGER_RESET)


def end_on_close(sock: socket.socket) -> None:
    """Let ``close`` end the stream in order: all of it was handed to the kernel, with its FIN."""
    _linger(sock, _NO_LINGER)


def _linger(sock: socket.socket, value: bytes) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, value)
    except OSError:
        pass
