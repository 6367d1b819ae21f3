"""A tunnel broke: was there a RESET in what the peer still said?

A RESET frame stands behind the bytes that were sent before it, and we may learn
of the end first: by a write that fails, or while we do not read because the
application does not.  The bytes are lost then, the reason need not be.
Sans-I/O but for ``read``.
"""

from collections.abc import Callable
from typing import Final

from node_agent.errors import CloseReason
from node_agent.frames import HEADER, HEADER_BYTES, LENGTH_MASK, TYPE_SHIFT, FrameType, decode_reset

_READ_BYTES: Final = 16384  # one TLS record
_PATIENCE_BYTES: Final = 4 * 1024 * 1024  # a few milliseconds of the relay's time


def find_reset(read: Callable[[int], bytes], *, remaining: int, header: bytes) -> tuple[bool, CloseReason | None]:
    """Read what the peer still said: whether there was a RESET in it, and its reason.

    ``read`` is the tunnel's, ``remaining`` and ``header`` are how far its
    frames were understood: payload bytes to come, or the beginning of a header.
    """
    pending = header
    for _ in range(_PATIENCE_BYTES // _READ_BYTES):
        try:
            more = read(_READ_BYTES)
        except OSError:
            break
        if not more:
            break
        pending += more
        start = 0
        while True:
            skipped = min(remaining, len(pending) - start)
            start += skipped
            remaining -= skipped
            if len(pending) - start < HEADER_BYTES:
                break
            (word,) = HEADER.unpack_from(pending, start)
            start += HEADER_BYTES
            kind, length = word >> TYPE_SHIFT, word & LENGTH_MASK
            if kind == FrameType.RESET:
                return True, decode_reset(pending[start : start + length])
            if kind not in (FrameType.DATA, FrameType.EOF):
                return False, None
            remaining = length
        pending = pending[start:]
    return False, None
