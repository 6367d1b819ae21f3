"""Find the end of a connection in frames whose bytes nobody wants any more.  Sans-I/O."""

from typing import Final, NamedTuple

from node_agent.errors import RemoteProtocolError
from node_agent.frames import (
    HEADER,
    HEADER_BYTES,
    LENGTH_MASK,
    MAX_CONTROL_BYTES,
    MAX_DATA_BYTES,
    TYPE_SHIFT,
    CutReason,
    FrameType,
    decode_reset,
)

_LEAST_DATA_BYTES: Final = 1  # DATA is never empty
_MOST_FRAMES: Final = 16384  # about ten milliseconds of the relay's time: a peer that sends more makes us busy
_MOST_BYTES: Final = {FrameType.DATA: MAX_DATA_BYTES, FrameType.EOF: 0, FrameType.RESET: MAX_CONTROL_BYTES}


class End(NamedTuple):
    """The frame by which the peer ended its direction, and what came behind it.

    ``is_cut``: a RESET with a payload, after which the tunnel is closed;
    ``reason`` is what it says, None if we do not know it.
    """

    kind: FrameType
    is_cut: bool
    reason: CutReason | None
    rest: bytes


class Skimmer:
    """Reads over DATA frames.

    ``remaining`` and ``header`` are how far the stream was understood before:
    payload bytes to come of a DATA frame, or the beginning of a header.
    """

    __slots__ = ("_frames", "_pending", "_remaining")

    def __init__(self, *, remaining: int = 0, header: bytes = b"") -> None:
        self._remaining = remaining
        self._pending = header
        self._frames = 0

    def feed(self, data: bytes) -> End | None:
        """Return the next EOF or RESET in the stream; its ``rest`` is to be fed again if a RESET may follow.

        Raises RemoteProtocolError for any other frame, and for too many of them.
        """
        pending = self._pending + data
        start = 0
        while True:
            skipped = min(self._remaining, len(pending) - start)
            start += skipped
            self._remaining -= skipped
            if len(pending) - start < HEADER_BYTES:
                break
            (word,) = HEADER.unpack_from(pending, start)
            kind, length = word >> TYPE_SHIFT, word & LENGTH_MASK
            most = _MOST_BYTES.get(kind)
            if most is None or length > most or (kind == FrameType.DATA and length < _LEAST_DATA_BYTES):
                raise RemoteProtocolError(f"a frame of type {kind} and {length} bytes where a connection is to end")
            self._frames += 1
            if self._frames > _MOST_FRAMES:
                raise RemoteProtocolError(f"more than {_MOST_FRAMES} frames where a connection is to end")
            if kind == FrameType.DATA:
                start += HEADER_BYTES
                self._remaining = length
                continue
            end = start + HEADER_BYTES + length
            if len(pending) < end:
                break  # a RESET whose payload is still to come
            self._pending = b""
            payload = pending[end - length : end]
            return End(FrameType(kind), bool(payload), decode_reset(payload), pending[end:])
        self._pending = pending[start:]
        return None
