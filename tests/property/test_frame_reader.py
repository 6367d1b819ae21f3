"""The relay's view of a tunnel: where the payloads are, however the reads cut the frames."""

from hypothesis import given
from hypothesis import strategies as st

from node_agent.frames import EOF_FRAME, HEADER, LENGTH_MASK, MAX_DATA_BYTES, TYPE_SHIFT, FrameType
from node_agent.relay.frame_reader import FrameReader
from tests.relay_builder import data, frame

_PAYLOADS = st.lists(st.binary(min_size=1, max_size=40), max_size=8)


def _read(reader: FrameReader, stream: bytes, cuts: list[int]) -> tuple[bytes, int | None, bytes]:
    """Feed ``stream`` in pieces that end at ``cuts``; returns payloads, the frame it stopped at, and the rest."""
    taken: list[bytes] = []
    begin = 0
    for cut in sorted({min(cut, len(stream)) for cut in cuts} | {len(stream)}):
        arena = memoryview(bytearray(stream[begin:cut]))
        payloads: list[memoryview] = []
        word, start = reader.read(arena, 0, len(arena), payloads)
        taken += map(bytes, payloads)
        if word is not None:
            return b"".join(taken), word, stream[begin + start :]
        assert start == len(arena)
        begin = cut
    return b"".join(taken), None, b""


@given(payloads=_PAYLOADS, cuts=st.lists(st.integers(min_value=1, max_value=400), max_size=30), behind=st.binary())
def test_the_payloads_are_the_same_however_the_frames_are_cut(
    payloads: list[bytes], cuts: list[int], behind: bytes
) -> None:
    stream = b"".join(map(data, payloads)) + EOF_FRAME + behind
    taken, word, rest = _read(FrameReader(), stream, cuts)
    assert taken == b"".join(payloads)
    assert word == FrameType.EOF << TYPE_SHIFT
    assert rest == behind


@given(payload=st.binary(min_size=1, max_size=40), read=st.integers(min_value=0, max_value=44))
def test_what_is_cut_off_is_remembered_as_bytes_to_come_or_the_beginning_of_a_header(payload: bytes, read: int) -> None:
    stream = data(payload)
    reader = FrameReader()
    _read(reader, stream[:read], [])
    read = min(read, len(stream))
    assert reader.header == (stream[:read] if read < HEADER.size else b"")
    assert reader.remaining == (len(stream) - read if read >= HEADER.size else 0)


@given(word=st.integers(min_value=0, max_value=0xFFFFFFFF))
def test_only_data_in_order_is_a_payload(word: int) -> None:
    reader = FrameReader()
    stopped_at = _read(reader, HEADER.pack(word), [])[1]
    is_data = word >> TYPE_SHIFT == FrameType.DATA and 0 < word & LENGTH_MASK <= MAX_DATA_BYTES
    assert stopped_at == (None if is_data else word)
    assert reader.remaining == (word & LENGTH_MASK if is_data else 0)


def test_there_is_no_data_behind_the_end() -> None:
    reader = FrameReader()
    reader.has_ended = True
    late = data(b"late")
    assert _read(reader, late, []) == (b"", HEADER.unpack(late[: HEADER.size])[0], b"late")
    assert _read(reader, frame(FrameType.RESET), [1, 2, 3])[1] == FrameType.RESET << TYPE_SHIFT
