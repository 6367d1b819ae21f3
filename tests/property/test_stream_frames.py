"""Frames of shared tunnels: what arrives is a message or a RemoteProtocolError, and what is sent comes out again."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from node_agent.errors import RemoteProtocolError
from node_agent.frames import HEADER_BYTES, LENGTH_MASK, MAX_CONTROL_BYTES, TYPE_SHIFT, FrameType, parse_control_header
from node_agent.stream_frames import (
    MAX_STREAM_DATA_BYTES,
    MAX_STREAMS,
    STREAM_HEADER,
    STREAM_HEADER_BYTES,
    TOKEN_BYTES,
    WINDOW_BYTES,
    StreamFrameType,
    decode_attach,
    decode_credit,
    decode_share,
    encode_attach,
    encode_credit,
    encode_share,
    encode_stream_frame,
)

_tokens = st.binary(min_size=TOKEN_BYTES, max_size=TOKEN_BYTES)
_ids = st.integers(0, 2**32 - 1)


@given(st.sampled_from(StreamFrameType), _ids, st.binary(max_size=2000))
def test_a_frame_comes_out_as_it_went_in(kind: StreamFrameType, stream_id: int, payload: bytes) -> None:
    frame = encode_stream_frame(kind, stream_id, payload)
    word, number = STREAM_HEADER.unpack_from(frame)
    assert (word >> TYPE_SHIFT, word & LENGTH_MASK, number) == (kind, len(payload), stream_id)
    assert frame[STREAM_HEADER_BYTES:] == payload


@given(_ids, st.integers(1, WINDOW_BYTES))
def test_credit_comes_out_as_it_went_in(stream_id: int, size: int) -> None:
    frame = encode_credit(stream_id, size)
    assert frame[0] == StreamFrameType.CREDIT
    assert decode_credit(frame[STREAM_HEADER_BYTES:]) == size


@given(_tokens)
def test_share_comes_out_as_it_went_in(token: bytes) -> None:
    frame = encode_share(token)
    kind, length = parse_control_header(frame[:HEADER_BYTES], FrameType.OPEN, FrameType.SHARE)
    assert (kind, length) == (FrameType.SHARE, TOKEN_BYTES)
    assert decode_share(frame[HEADER_BYTES:]) == token


@given(_tokens, _ids)
def test_attach_comes_out_as_it_went_in(token: bytes, stream_id: int) -> None:
    frame = encode_attach(token, stream_id)
    kind, length = parse_control_header(frame[:HEADER_BYTES], FrameType.OPEN, FrameType.ATTACH)
    assert (kind, length) == (FrameType.ATTACH, len(frame) - HEADER_BYTES)
    assert decode_attach(frame[HEADER_BYTES:]) == (token, stream_id)


@given(st.binary(max_size=64))
@example(b"\0\0\0\0")
@example(b"\0\1\0\1")
@example(b"\xff\xff\xff\xff")
def test_garbage_is_refused_or_understood_and_nothing_else(payload: bytes) -> None:
    if len(payload) == TOKEN_BYTES:
        assert decode_share(payload) == payload
    else:
        with pytest.raises(RemoteProtocolError, match=f"SHARE.*got {len(payload)}"):
            decode_share(payload)
    if len(payload) == TOKEN_BYTES + 4:
        assert decode_attach(payload) == (payload[:TOKEN_BYTES], int.from_bytes(payload[TOKEN_BYTES:], "big"))
    else:
        with pytest.raises(RemoteProtocolError, match=f"ATTACH.*got {len(payload)}"):
            decode_attach(payload)
    size = int.from_bytes(payload, "big")
    if len(payload) == 4 and 1 <= size <= WINDOW_BYTES:
        assert decode_credit(payload) == size
    else:
        with pytest.raises(RemoteProtocolError, match=r"CREDIT: expected"):
            decode_credit(payload)


@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES), st.sets(st.sampled_from(FrameType), min_size=1))
def test_a_header_is_of_one_of_the_expected_types(header: bytes, expected: set[FrameType]) -> None:
    word = int.from_bytes(header, "big")
    if word >> TYPE_SHIFT in expected and word & LENGTH_MASK <= MAX_CONTROL_BYTES:
        assert parse_control_header(header, *expected) == (word >> TYPE_SHIFT, word & LENGTH_MASK)
    else:
        with pytest.raises(RemoteProtocolError):
            parse_control_header(header, *expected)


def test_limits_are_what_the_protocol_says() -> None:
    assert (STREAM_HEADER_BYTES, TOKEN_BYTES, MAX_STREAMS, WINDOW_BYTES) == (8, 16, 256, 65_536)
    assert MAX_STREAM_DATA_BYTES == 65_528
    assert {kind.name: int(kind) for kind in StreamFrameType} == {
        "OPEN": 1,
        "VERDICT": 2,
        "DATA": 3,
        "EOF": 4,
        "RESET": 5,
        "CREDIT": 6,
        "OWN": 7,
        "MOVED": 8,
    }
