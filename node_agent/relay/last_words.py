"""A tunnel broke: was there a RESET in what the peer still said?

A RESET frame stands behind the bytes that were sent before it, and we may learn
of the end first: by a write that fails, or while we do not read because the
application does not.  The bytes are lost then, the reason need not be.
Sans-I/O but for ``read``.
"""

from collections.abc import Callable
from typing import Final

from node_agent.errors import RemoteProtocolError
from node_agent.frames import CutReason, FrameType
from node_agent.relay.skim import Skimmer

_READ_BYTES: Final = 16384  # one TLS record
_PATIENCE_BYTES: Final = 4 * 1024 * 1024  # a few milliseconds of the relay's time
_PATIENCE_READS: Final = 4096  # as many, if the records are small


def find_reset(read: Callable[[int], bytes], *, remaining: int, header: bytes) -> tuple[bool, CutReason | None]:
    """Read what the peer still said: whether there was a RESET in it, and its reason.

    ``read`` is the tunnel's, ``remaining`` and ``header`` are how far its
    frames were understood (see ``Skimmer``).
    """
    skimmer = Skimmer(remaining=remaining, header=header)
    has_ended = False
    got_bytes = 0
    for _ in range(_PATIENCE_READS):
        try:
            more = read(_READ_BYTES)
        except OSError:
            break
        got_bytes += len(more)
        if not more or got_bytes > _PATIENCE_BYTES:
            break
        try:
            while (end := skimmer.feed(more)) is not None:
                if end.kind is FrameType.RESET:
                    return True, end.reason
                if has_ended:
                    return False, None  # nothing but RESET may follow an EOF, least of all thousands of them
                has_ended = True
                more = end.rest
        except RemoteProtocolError:
            break
    return False, None
