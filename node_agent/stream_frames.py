"""The frames of a shared tunnel: many connections, each a *stream*, in one tunnel.

Sans-I/O.  The protocol is specified in docs/tunnel-protocol.md ("Shared tunnels"); a frame is

    +--------+----------------+----------------+=================+
    | type 1 | length 3, big- | stream id 4,   | length bytes of |
    | byte   | endian         | big-endian     | payload         |
    +--------+----------------+----------------+=================+

SHARE makes a fresh tunnel a shared one; ATTACH gives a stream a tunnel of its
own.  Both are said with the short headers of ``frames``.
"""

import struct
from enum import IntEnum
from typing import Final

from node_agent.errors import RemoteProtocolError
from node_agent.frames import HEADER, TYPE_SHIFT, FrameType

SHARED_ALPN: Final = "ringfence/2"
STREAM_HEADER: Final = struct.Struct(">II")
STREAM_HEADER_BYTES: Final = STREAM_HEADER.size
MAX_STREAM_DATA_BYTES: Final = 4 * 16384 - STREAM_HEADER_BYTES  # with its header, exactly four full TLS records
WINDOW_BYTES: Final = 64 * 1024
"""How many bytes of one direction of a stream may be under way: to be sent without having heard of their delivery."""
TOKEN_BYTES: Final = 16
MAX_STREAMS: Final = 256
"""At a time, in a tunnel; its destination refuses more."""
_ATTACH: Final = struct.Struct(f">{TOKEN_BYTES}sI")
_CREDIT: Final = struct.Struct(">I")


class StreamFrameType(IntEnum):
    """The first byte of a stream's frame."""

    OPEN = 1
    VERDICT = 2
    DATA = 3
    EOF = 4
    RESET = 5
    CREDIT = 6
    OWN = 7
    MOVED = 8


def encode_stream_frame(kind: StreamFrameType, stream_id: int, payload: bytes = b"") -> bytes:
    """Return a frame of one stream."""
    return STREAM_HEADER.pack(kind << TYPE_SHIFT | len(payload), stream_id) + payload


def encode_credit(stream_id: int, size: int) -> bytes:
    """Return the frame that allows ``size`` bytes more."""
    return encode_stream_frame(StreamFrameType.CREDIT, stream_id, _CREDIT.pack(size))


def decode_credit(payload: bytes) -> int:
    """How many bytes more are allowed; raises RemoteProtocolError."""
    if len(payload) != _CREDIT.size:
        raise RemoteProtocolError(f"CREDIT: expected {_CREDIT.size} bytes, got {len(payload)}")
    (size,) = _CREDIT.unpack(payload)
    if not 0 < size <= WINDOW_BYTES:
        raise RemoteProtocolError(f"CREDIT: expected 1 to {WINDOW_BYTES}, got {size}")
    return int(size)


def encode_share(token: bytes) -> bytes:
    """Return the frame that makes a tunnel a shared one; ``token`` names it in ATTACH."""
    assert len(token) == TOKEN_BYTES
    return HEADER.pack(FrameType.SHARE << TYPE_SHIFT | len(token)) + token


def decode_share(payload: bytes) -> bytes:
    """Return the token; raises RemoteProtocolError."""
    if len(payload) != TOKEN_BYTES:
        raise RemoteProtocolError(f"SHARE: expected {TOKEN_BYTES} bytes, got {len(payload)}")
    return payload


def encode_attach(token: bytes, stream_id: int) -> bytes:
    """Return the frame that makes a tunnel the own one of a stream of the shared tunnel ``token``."""
    payload = _ATTACH.pack(token, stream_id)
    return HEADER.pack(FrameType.ATTACH << TYPE_SHIFT | len(payload)) + payload


def decode_attach(payload: bytes) -> tuple[bytes, int]:
    """Return the token and the stream's number; raises RemoteProtocolError."""
    if len(payload) != _ATTACH.size:
        raise RemoteProtocolError(f"ATTACH: expected {_ATTACH.size} bytes, got {len(payload)}")
    token, stream_id = _ATTACH.unpack(payload)
    return token, stream_id
