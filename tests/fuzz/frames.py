"""Fuzz target: the control frames of the tunnel between two agents.

Any bytes are a frame that was understood or a ``RemoteProtocolError``.
"""

import struct
from typing import Any

import atheris

with atheris.instrument_imports(include=["ca", "node_agent"]):
    from ca.wire import WireError, pack, unpack
    from node_agent import frames, stream_frames
    from node_agent.errors import CloseReason, RemoteProtocolError
    from node_agent.model import ObjectName, OriginalDestination, PeerAddress

from tests.fuzz import harness

_DECODERS = (
    frames.decode_open,
    frames.decode_verdict,
    frames.decode_reset,
    stream_frames.decode_share,
    stream_frames.decode_attach,
    stream_frames.decode_credit,
)


def target(data: bytes) -> None:
    header, payload = data[: frames.HEADER_BYTES], data[frames.HEADER_BYTES :]
    for kind in frames.FrameType:
        if len(header) == frames.HEADER_BYTES:
            try:
                found, length = frames.parse_control_header(header, kind)
                assert found is kind
                assert 0 <= length <= frames.MAX_CONTROL_BYTES
            except RemoteProtocolError:
                pass
    for decode in _DECODERS:
        try:
            message = decode(payload)
        except RemoteProtocolError as error:
            assert error.detail
            continue
        if isinstance(message, frames.Open):
            assert all(0 < address.port < 65536 for address in (message.destination, message.source))
            assert frames.decode_open(frames.encode_open(message)[frames.HEADER_BYTES :]) == message


def seeds() -> list[bytes]:
    opened = frames.Open(
        destination=OriginalDestination("10.247.2.3", 8080),
        source=PeerAddress("fd00::1", 41234),
        workload=ObjectName("default", "cart"),
        trace_parent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )
    verdicts = [frames.Verdict(reason=reason, detail="why") for reason in CloseReason]
    token = bytes(stream_frames.TOKEN_BYTES)
    shared = [
        stream_frames.encode_share(token),
        stream_frames.encode_attach(token, 7),
        frames.HEADER.pack(4) + stream_frames.encode_credit(7, 32_768)[stream_frames.STREAM_HEADER_BYTES :],
    ]
    resets = [frames.encode_reset(reason) for reason in (None, *CloseReason)]
    return [frames.encode_open(opened), *map(frames.encode_verdict, verdicts), *resets, frames.EOF_FRAME, *shared]


def _read(data: bytes) -> Any:
    return unpack(data[frames.HEADER_BYTES :], frames.MAX_CONTROL_BYTES)


def _write(fields: Any) -> bytes:
    payload = pack(fields)
    return frames.HEADER.pack(frames.FrameType.OPEN << frames.TYPE_SHIFT | len(payload)) + payload


if __name__ == "__main__":
    harness.main(
        "tests.fuzz.frames",
        target,
        seeds(),
        harness.message_mutator(_read, _write, errors=(WireError, ValueError, TypeError, OverflowError, struct.error)),
    )
