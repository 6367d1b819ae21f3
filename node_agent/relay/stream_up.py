"""From the application of one stream to its shared tunnel: read once, framed in place among those of others.

reading --no credit, tunnel blocked--> waiting --CREDIT, written--> reading --EOF read--> ended (EOF frame said)
"""

import socket
from typing import Final

from node_agent.errors import RemoteProtocolError
from node_agent.frames import TYPE_SHIFT
from node_agent.relay.news import News
from node_agent.relay.receive_queue import has_only_its_end
from node_agent.relay.shared_up import FULL, SharedUp
from node_agent.stream_frames import (
    MAX_STREAM_DATA_BYTES,
    STREAM_HEADER,
    STREAM_HEADER_BYTES,
    WINDOW_BYTES,
    StreamFrameType,
)

_FIRST_READ_BYTES: Final = 16384 - STREAM_HEADER_BYTES  # with its header one whole TLS record
_DATA_WORD: Final = StreamFrameType.DATA << TYPE_SHIFT
_EOF_WORD: Final = StreamFrameType.EOF << TYPE_SHIFT
_pack_header = STREAM_HEADER.pack_into


class StreamUp:
    """One half of a stream; does not own the socket that it is given by ``begin``.

    ``moved_bytes`` counts what the application sent, ``credit`` what it may send.
    ``is_waiting``: the tunnel is blocked; who called ``pump`` then waits for it.
    """

    __slots__ = (
        "_plain",
        "_read_bytes",
        "_recv_into",
        "_shared",
        "_stream_id",
        "credit",
        "has_ended",
        "is_waiting",
        "moved_bytes",
    )

    def __init__(self, *, shared: SharedUp, stream_id: int) -> None:
        self._shared = shared
        self._stream_id = stream_id
        self._read_bytes = _FIRST_READ_BYTES
        self.credit = WINDOW_BYTES
        self.has_ended = False
        self.is_waiting = False
        self.moved_bytes = 0

    @property
    def may_read(self) -> bool:
        """Whether ``pump`` has something to do when the application has said something."""
        return self.credit > 0 and not self.has_ended and not self.is_waiting

    def begin(self, plain: socket.socket) -> None:
        """Read from ``plain``."""
        self._plain = plain
        self._recv_into = plain.recv_into

    def allow(self, size: int) -> None:
        """CREDIT has come; raises RemoteProtocolError."""
        self.credit += size
        if self.credit > WINDOW_BYTES:
            raise RemoteProtocolError(f"stream {self._stream_id}: CREDIT for more than was sent")

    def pump(self, *, is_last: bool = False) -> News | None:
        """Read once, behind what others have to say; ``is_last``: the FIN has arrived, perhaps behind these bytes."""
        shared = self._shared
        end = shared.end
        if not 0 < end <= FULL:
            if not shared.make_room():
                self.is_waiting = True
                return News.CHANGED
            end = shared.end
        out = shared.out
        body = end + STREAM_HEADER_BYTES
        most = self.credit if self.credit < self._read_bytes else self._read_bytes
        try:
            received = self._recv_into(out[body:] if end else shared.out_body, most)
        except BlockingIOError:
            return None
        except OSError:
            return News.PLAIN_BROKEN
        if not end:
            shared.begins()
        if received:
            _pack_header(out, end, _DATA_WORD | received, self._stream_id)
            end = shared.end = body + received
            self.moved_bytes += received
            self.credit -= received
            if received == self._read_bytes:
                self._read_bytes = MAX_STREAM_DATA_BYTES
            if not self.credit:
                return News.CHANGED
            try:
                if not (is_last and received < most and has_only_its_end(self._plain)):
                    return None
            except OSError:
                # The kernel tells an error once; the next recv would call the stream whole.
                return News.PLAIN_BROKEN
        # The end in the same record as the last bytes: one packet, one wake-up of the peer.
        _pack_header(out, end, _EOF_WORD, self._stream_id)
        shared.end = end + STREAM_HEADER_BYTES
        self.has_ended = True
        return News.CHANGED
