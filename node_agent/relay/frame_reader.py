"""Where the payloads are in what was read of a tunnel.  Sans-I/O.

The frames stay where they were read: a payload is a slice of the arena, so no
byte of it is copied.  Frames are cut anywhere by the reads; what is cut off at
the end of one is remembered until the next.
"""

from typing import Final

from node_agent.frames import HEADER, HEADER_BYTES, LENGTH_MASK, MAX_DATA_BYTES, TYPE_SHIFT, FrameType

_DATA: Final = int(FrameType.DATA)
_unpack_header = HEADER.unpack_from


class FrameReader:
    """One connection's frames, up to wherever it has been read.

    ``remaining``: payload bytes to come of a DATA frame.  ``header``: the
    beginning of one that was cut off.  ``has_ended``: set by the caller behind
    EOF, when there is no DATA any more.
    """

    __slots__ = ("has_ended", "header", "remaining")

    def __init__(self) -> None:
        self.remaining = 0
        self.header = b""
        self.has_ended = False

    def read(self, arena: memoryview, start: int, end: int, payloads: list[memoryview]) -> tuple[int | None, int]:
        """Append the payloads in ``arena[start:end]``, up to the first frame that is no DATA or not in order.

        Returns that frame's header and where its payload begins, or None and the
        end when there is no such frame.
        """
        remaining = self.remaining
        while start < end:
            if remaining:
                stop = start + remaining
                if stop > end:
                    payloads.append(arena[start:end])
                    self.remaining = stop - end
                    return None, end
                payloads.append(arena[start:stop])
                remaining = 0
                start = stop
                continue
            if self.header or end - start < HEADER_BYTES:
                missing = HEADER_BYTES - len(self.header)
                self.header += bytes(arena[start : min(start + missing, end)])
                start += missing
                if start > end:
                    break
                (word,) = HEADER.unpack(self.header)
                self.header = b""
            else:
                (word,) = _unpack_header(arena, start)
                start += HEADER_BYTES
            length = word & LENGTH_MASK
            if word >> TYPE_SHIFT != _DATA or self.has_ended or not 0 < length <= MAX_DATA_BYTES:
                self.remaining = 0
                return word, start
            remaining = length
        self.remaining = remaining
        return None, end
