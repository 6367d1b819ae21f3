"""What a broken tunnel still says is looked through, but not for as long as a peer likes."""

from collections.abc import Callable

import pytest

from node_agent.errors import CloseReason, RemoteProtocolError
from node_agent.frames import HEADER, RESET_FRAME, TYPE_SHIFT, FrameType, encode_reset
from node_agent.relay.last_words import find_reset
from node_agent.relay.skim import Skimmer

_EOF = HEADER.pack(FrameType.EOF << TYPE_SHIFT)
_RECORD_BYTES = 16384


def _data(payload: bytes) -> bytes:
    return HEADER.pack(FrameType.DATA << TYPE_SHIFT | len(payload)) + payload


class _Queue:
    """The records in the receive queue of a tunnel that broke; ``taken`` is how many were read."""

    def __init__(self, *records: bytes) -> None:
        self._records = records
        self.taken = 0

    def read(self, _size: int) -> bytes:
        if self.taken == len(self._records):
            raise ConnectionResetError
        self.taken += 1
        return self._records[self.taken - 1]


@pytest.mark.parametrize("end", [b"", _EOF])
def test_the_reset_is_found_behind_thousands_of_small_records(end: bytes) -> None:
    queue = _Queue(*[_data(b"hello")] * 2000, end + encode_reset(CloseReason.DRAINED))
    assert find_reset(queue.read, remaining=0, header=b"") == (True, CloseReason.DRAINED)


@pytest.mark.parametrize(
    "record",
    [_EOF * (_RECORD_BYTES // 4), _data(b"x") * (_RECORD_BYTES // 5), _data(b"") * (_RECORD_BYTES // 4)],
    ids=["ends", "tiny", "empty"],
)
def test_a_peer_that_sends_headers_and_little_else_is_not_listened_to_for_long(record: bytes) -> None:
    """Each frame costs the relay, and with it every other connection, as much as one that carries something."""
    queue = _Queue(*[record] * 256)
    assert find_reset(queue.read, remaining=0, header=b"") == (False, None)
    assert queue.taken <= 8


def test_a_tunnel_is_not_read_without_end_for_the_last_word() -> None:
    queue = _Queue(*[b"x" * _RECORD_BYTES] * 1000, RESET_FRAME)
    assert find_reset(queue.read, remaining=1000 * _RECORD_BYTES, header=b"") == (False, None)
    assert queue.taken < 300


def test_the_skimmer_has_no_patience_with_tiny_frames_however_they_are_cut() -> None:
    skimmer = Skimmer()

    def feed_many() -> None:
        for _ in range(1_000):
            assert skimmer.feed(_data(b"x") * 100) is None

    _refused(feed_many)


def _refused(act: Callable[[], None]) -> None:
    with pytest.raises(RemoteProtocolError, match="more than 16384 frames"):
        act()
