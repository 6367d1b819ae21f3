"""One side of a tunnel: what the application does becomes frames, and frames become what the application sees."""

import random

import pytest

from node_agent.frames import MAX_DATA_BYTES, FrameType
from node_agent.relay import Ending, Outcome
from node_agent.relay.loop import ARENA_BYTES
from tests.background import in_background
from tests.relay_builder import (
    COMPLETE,
    DEADLINE_S,
    EOF,
    SMALL_BUFFER_BYTES,
    RelayBench,
    data,
    end_up,
    frame,
    random_chunks,
    read_all,
    was_reset,
)

# -- the ordinary life ---------------------------------------------------------


@pytest.mark.parametrize("source_side", [True, False], ids=["source", "destination"])
def test_bytes_travel_both_ways_and_both_ends_are_clean(bench: RelayBench, source_side: bool) -> None:
    joined = bench.tunnel(source_side=source_side)
    joined.app.sendall(b"question")
    assert joined.peer.read_frame() == (FrameType.DATA, b"question")
    joined.peer.send(data(b"answer"))
    assert joined.app.recv(100) == b"answer"
    joined.peer.send(EOF)
    assert joined.app.recv(100) == b""
    end_up(joined)
    assert joined.finish.wait() == COMPLETE
    assert (joined.pair.up_bytes, joined.pair.down_bytes) == (8, 6)


def test_application_that_shuts_its_side_still_receives(bench: RelayBench) -> None:
    joined = bench.tunnel()
    joined.app.sendall(b"all of it")
    end_up(joined, b"all of it")
    for number in range(10):
        joined.peer.send(data(b"late %d;" % number))
    joined.peer.send(EOF)
    assert read_all(joined.app) == b"".join(b"late %d;" % number for number in range(10))
    assert joined.finish.wait() == COMPLETE


def test_peer_that_shuts_its_side_still_receives(bench: RelayBench) -> None:
    joined = bench.tunnel()
    joined.peer.send(EOF)
    assert joined.app.recv(1) == b""
    joined.app.sendall(b"late " * 50_000)
    end_up(joined, b"late " * 50_000)
    assert joined.finish.wait() == COMPLETE


def test_tunnel_is_open_and_usable_after_a_complete_connection(bench: RelayBench) -> None:
    joined = bench.tunnel()
    joined.peer.send(EOF)
    end_up(joined)
    assert joined.finish.wait() == COMPLETE
    joined.tunnel.setblocking(True)
    joined.tunnel.sendall(b"next connection")
    assert joined.peer.tls.recv(100) == b"next connection"


def test_nothing_at_all_is_a_complete_connection(bench: RelayBench) -> None:
    joined = bench.tunnel()
    joined.app.close()
    assert joined.peer.read_frame() == (FrameType.EOF, b"")
    joined.peer.send(EOF)
    assert joined.finish.wait() == COMPLETE


@pytest.mark.parametrize("seed", range(4))
def test_random_frames_in_random_writes_arrive_whole(bench: RelayBench, seed: int) -> None:
    rng = random.Random(seed)
    payload = rng.randbytes(3_000_000)
    joined = bench.tunnel(buffer_bytes=rng.choice([None, SMALL_BUFFER_BYTES]))
    frames = b"".join(map(data, random_chunks(rng, payload, most_bytes=MAX_DATA_BYTES))) + EOF
    writes = random_chunks(rng, frames, most_bytes=1 << 20)

    def peer_sends() -> None:
        for write in writes:
            joined.peer.send(write)

    with in_background(peer_sends):
        assert read_all(joined.app) == payload
    end_up(joined)
    assert joined.finish.wait() == COMPLETE
    assert (joined.pair.up_bytes, joined.pair.down_bytes) == (0, len(payload))


# -- frames and TLS records have nothing to do with each other --------------------


def test_frames_one_byte_a_record(bench: RelayBench) -> None:
    joined = bench.tunnel()
    stream = data(b"a") + data(b"bcd" * 100) + data(b"e") + EOF
    for at in range(len(stream)):
        joined.peer.send(stream[at : at + 1])
    assert read_all(joined.app) == b"a" + b"bcd" * 100 + b"e"
    end_up(joined)
    assert joined.finish.wait() == COMPLETE


def test_frames_split_at_every_position(bench: RelayBench) -> None:
    stream = data(b"hello") + data(b"!") + EOF
    for at in range(1, len(stream)):
        joined = bench.tunnel()
        joined.peer.send(stream[:at])
        joined.peer.send(stream[at:])
        assert read_all(joined.app) == b"hello!", at
        end_up(joined)
        assert joined.finish.wait() == COMPLETE, at


def test_thousands_of_one_byte_frames_in_one_record(bench: RelayBench) -> None:
    joined = bench.tunnel()
    payload = random.Random(1).randbytes(3000)
    joined.peer.send(b"".join(data(payload[at : at + 1]) for at in range(len(payload))) + EOF)
    assert read_all(joined.app) == payload
    end_up(joined)
    assert joined.finish.wait() == COMPLETE


def test_one_byte_frames_that_fill_many_arenas(bench: RelayBench) -> None:
    joined = bench.tunnel()
    payload = random.Random(2).randbytes(200_000)
    frames = b"".join(data(payload[at : at + 1]) for at in range(len(payload))) + EOF
    assert len(frames) > 3 * ARENA_BYTES
    with in_background(lambda: joined.peer.send(frames)):
        assert read_all(joined.app) == payload
    end_up(joined)
    assert joined.finish.wait() == COMPLETE


def test_largest_frame(bench: RelayBench) -> None:
    joined = bench.tunnel()
    payload = random.Random(3).randbytes(MAX_DATA_BYTES)
    with in_background(lambda: joined.peer.send(data(payload) + EOF)):
        assert read_all(joined.app) == payload
    end_up(joined)
    assert joined.finish.wait() == COMPLETE


def test_bytes_already_inside_tls_at_the_start_are_not_forgotten(bench: RelayBench) -> None:
    joined = bench.tunnel(start=False)
    joined.peer.send(b"VERDICT!" + data(b"banner") + EOF)
    joined.tunnel.settimeout(DEADLINE_S)
    assert joined.tunnel.recv(8) == b"VERDICT!"
    joined.tunnel.setblocking(False)
    bench.loop.call_soon(joined.pair.start)
    assert read_all(joined.app) == b"banner"
    end_up(joined)
    assert joined.finish.wait() == COMPLETE


# -- the next connection behind EOF -------------------------------------------------


def test_what_follows_the_last_eof_is_left_over(bench: RelayBench) -> None:
    joined = bench.tunnel()
    end_up(joined)
    following = frame(FrameType.OPEN, b"the next connection")
    joined.peer.send(data(b"last words") + EOF + following)
    assert read_all(joined.app) == b"last words"
    assert joined.finish.wait() == Outcome(ending=Ending.COMPLETE, leftover=following)


def test_leftover_survives_an_application_that_reads_late(bench: RelayBench) -> None:
    joined = bench.tunnel(buffer_bytes=SMALL_BUFFER_BYTES)
    end_up(joined)
    payload = random.Random(4).randbytes(200_000)
    following = frame(FrameType.OPEN, b"the next connection")
    with in_background(lambda: joined.peer.send(data(payload) + EOF + following)):
        assert read_all(joined.app) == payload
    outcome = joined.finish.wait()
    assert outcome.ending is Ending.COMPLETE
    # What the relay did not take out of TLS is still in the tunnel.
    rest = b""
    joined.tunnel.settimeout(DEADLINE_S)
    while len(outcome.leftover + rest) < len(following):
        rest += joined.tunnel.recv(100)
    assert outcome.leftover + rest == following


# -- what a peer must not send --------------------------------------------------------


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(EOF + data(b"more"), id="data-after-eof"),
        pytest.param(EOF + EOF, id="second-eof"),
        pytest.param(frame(FrameType.DATA), id="empty-data"),
        pytest.param((3 << 24 | (MAX_DATA_BYTES + 1)).to_bytes(4, "big"), id="length-over-the-limit"),
        pytest.param(b"\x03\xff\xff\xff", id="longest-length"),
        pytest.param(frame(FrameType.EOF, b"x"), id="eof-with-payload"),
        pytest.param(frame(FrameType.OPEN, b"x"), id="open-in-the-middle"),
        pytest.param(frame(FrameType.VERDICT, b"x"), id="second-verdict"),
        pytest.param(frame(0), id="type-0"),
        pytest.param(frame(6), id="type-6"),
        pytest.param(frame(255), id="type-255"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="http"),
    ],
)
def test_broken_protocol_resets_the_application(bench: RelayBench, stream: bytes) -> None:
    joined = bench.tunnel()
    joined.peer.send(stream)
    assert joined.finish.wait().ending is Ending.PROTOCOL_ERROR
    assert was_reset(joined.app)
    assert joined.peer.read_stream() == (b"", FrameType.RESET)
    joined.peer.read_end()
