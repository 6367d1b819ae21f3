"""After an application's reset both agents agree where the next connection begins, or the tunnel is gone."""

import queue
import random
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from node_agent.errors import CloseReason
from node_agent.frames import FrameType, encode_reset
from node_agent.relay import Ending, Settlement
from tests.relay_builder import (
    DEADLINE_S,
    EOF,
    RESET,
    JoinedTunnel,
    RelayBench,
    data,
    frame,
    reset,
    send_until_stuck,
    was_reset,
)

_SMALL_BUFFER_BYTES = 16 * 1024
_NEXT = frame(FrameType.OPEN, b"the next connection")


def _settled(bench: RelayBench, joined: JoinedTunnel, ending: Ending) -> bytes | None:
    """Wait for the pair's ending and for its tunnel; returns what came behind, None if the tunnel is lost."""
    outcome = joined.finish.wait()
    assert outcome.ending is ending
    settlement = outcome.settlement
    assert settlement is not None
    result: queue.Queue[bytes | None] = queue.Queue()

    def ask(settlement: Settlement) -> None:
        if settlement.is_over:
            result.put(settlement.leftover)
        else:
            settlement.tell(lambda: result.put(settlement.leftover))

    bench.loop.call_soon(lambda: ask(settlement))
    return result.get(timeout=DEADLINE_S)


def _usable(joined: JoinedTunnel) -> bool:
    """Whether a byte still gets from the peer to our end of the tunnel."""
    joined.peer.send(b"!")
    joined.tunnel.settimeout(DEADLINE_S)
    return joined.tunnel.recv(1) == b"!"


# -- we reset ---------------------------------------------------------------------


def test_reset_that_is_answered_saves_the_tunnel(bench: RelayBench) -> None:
    joined = bench.tunnel()
    reset(joined.app)
    assert joined.peer.read_stream() == (b"", FrameType.RESET)
    joined.peer.send(RESET)
    assert _settled(bench, joined, Ending.PLAIN_RESET) == b""
    assert _usable(joined)


def test_bytes_on_their_way_are_read_over(bench: RelayBench) -> None:
    joined = bench.tunnel()
    reset(joined.app)
    assert joined.peer.read_stream() == (b"", FrameType.RESET)
    for size in (1, 5000, 16_380, 100_000):
        joined.peer.send(data(b"x" * size))
    joined.peer.send(data(b"y" * 50) + EOF)
    assert _settled(bench, joined, Ending.PLAIN_RESET) == b""
    assert _usable(joined)


def test_peer_that_has_ended_before_need_not_answer(bench: RelayBench) -> None:
    joined = bench.tunnel()
    joined.peer.send(EOF)
    assert joined.app.recv(1) == b""
    reset(joined.app)
    assert joined.peer.read_stream() == (b"", FrameType.RESET)
    assert _settled(bench, joined, Ending.PLAIN_RESET) == b""
    assert _usable(joined)


def test_reset_behind_our_own_eof_is_sent_and_settles_too(bench: RelayBench) -> None:
    joined = bench.tunnel()
    joined.app.shutdown(socket.SHUT_WR)
    assert joined.peer.read_stream() == (b"", FrameType.EOF)
    reset(joined.app)
    assert joined.peer.read_stream() == (b"", FrameType.RESET)
    joined.peer.send(data(b"too late") + EOF)
    assert _settled(bench, joined, Ending.PLAIN_RESET) == b""
    assert _usable(joined)


def test_what_stands_behind_the_answer_is_left_over(bench: RelayBench) -> None:
    joined = bench.tunnel(source_side=False)
    joined.app.shutdown(socket.SHUT_WR)
    assert joined.peer.read_stream() == (b"", FrameType.EOF)
    reset(joined.app)
    assert joined.peer.read_stream() == (b"", FrameType.RESET)
    joined.peer.send(EOF + _NEXT)
    assert _settled(bench, joined, Ending.PLAIN_RESET) == _NEXT


def test_reset_in_the_middle_of_a_blocked_write_finishes_the_frame_first(bench: RelayBench) -> None:
    joined = bench.tunnel(buffer_bytes=_SMALL_BUFFER_BYTES)
    joined.app.setblocking(False)
    send_until_stuck(joined.app.send, b"x" * 65536, most_bytes=1 << 26)
    reset(joined.app)
    _, last = joined.peer.read_stream()
    assert last == FrameType.RESET
    joined.peer.send(RESET)
    assert _settled(bench, joined, Ending.PLAIN_RESET) == b""
    assert _usable(joined)


# -- the peer resets --------------------------------------------------------------


def test_reset_is_answered_once(bench: RelayBench) -> None:
    joined = bench.tunnel()
    joined.peer.send(RESET)
    assert joined.peer.read_stream() == (b"", FrameType.RESET)
    assert _settled(bench, joined, Ending.PEER_RESET) == b""
    assert was_reset(joined.app)
    assert _usable(joined)


def test_reset_after_our_eof_is_not_answered(bench: RelayBench) -> None:
    joined = bench.tunnel(source_side=False)
    joined.app.shutdown(socket.SHUT_WR)
    assert joined.peer.read_stream() == (b"", FrameType.EOF)
    joined.peer.send(RESET + _NEXT)
    assert _settled(bench, joined, Ending.PEER_RESET) == _NEXT
    joined.tunnel.settimeout(DEADLINE_S)
    joined.tunnel.send(b"!")
    assert joined.peer.tls.recv(100) == b"!", "the answer is nothing"


def test_answer_waits_for_a_blocked_write(bench: RelayBench) -> None:
    joined = bench.tunnel(buffer_bytes=_SMALL_BUFFER_BYTES)
    joined.app.setblocking(False)
    send_until_stuck(joined.app.send, b"x" * 65536, most_bytes=1 << 26)
    joined.peer.send(RESET)
    _, last = joined.peer.read_stream()
    assert last == FrameType.RESET
    assert _settled(bench, joined, Ending.PEER_RESET) == b""
    assert _usable(joined)


# -- what can not be saved ----------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        encode_reset(CloseReason.DRAINED),
        encode_reset(CloseReason.WORKLOAD_REMOVED),
        frame(FrameType.RESET, b"a reason of tomorrow"),
        _NEXT,
        frame(77),
        frame(FrameType.EOF, b"not empty"),
        b"",
    ],
    ids=["drained", "removed", "unknown reason", "open", "unknown type", "eof with payload", "end of the tunnel"],
)
def test_peer_that_answers_something_else_loses_the_tunnel(bench: RelayBench, answer: bytes) -> None:
    joined = bench.tunnel()
    reset(joined.app)
    assert joined.peer.read_stream() == (b"", FrameType.RESET)
    if answer:
        joined.peer.send(answer)
    else:
        joined.peer.tls.close()
    assert _settled(bench, joined, Ending.PLAIN_RESET) is None


def test_silent_peer_is_given_up(bench: RelayBench) -> None:
    joined = bench.tunnel()
    reset(joined.app)
    assert joined.peer.read_stream() == (b"", FrameType.RESET)
    joined.peer.read_end()
    assert _settled(bench, joined, Ending.PLAIN_RESET) is None


def test_peer_that_only_sends_is_given_up(bench: RelayBench) -> None:
    joined = bench.tunnel()
    reset(joined.app)
    with suppress(OSError):
        while True:
            joined.peer.send(data(b"x" * 65536))
    assert _settled(bench, joined, Ending.PLAIN_RESET) is None


def test_abandoned_tunnel_is_closed(bench: RelayBench) -> None:
    joined = bench.tunnel()
    reset(joined.app)
    settlement = joined.finish.wait().settlement
    assert settlement is not None
    settlement.abandon()
    assert joined.peer.read_stream() == (b"", FrameType.RESET)
    joined.peer.read_end()


# -- both agents ---------------------------------------------------------------------


def _acts(rng: random.Random, joined: JoinedTunnel) -> Iterator[None]:
    """One application: sends, reads, perhaps ends its side, and leaves by FIN or by RST."""
    app = joined.app
    app.setblocking(False)
    for _ in range(rng.randrange(6)):
        with suppress(OSError):
            act = rng.randrange(4)
            if act == 0:
                app.send(rng.randbytes(rng.choice([1, 1000, 300_000])))
            elif act == 1:
                app.recv(rng.choice([1, 100_000]))
            elif act == 2:
                app.shutdown(socket.SHUT_WR)
        yield
    if rng.random() < 0.6:
        reset(app)
    else:
        app.close()


@pytest.mark.parametrize("seed", range(60))
def test_whatever_two_applications_do_both_agents_agree_on_the_tunnel(bench: RelayBench, seed: int) -> None:
    """Saved at both ends or lost; saved means that the next frame is understood, in both directions."""
    rng = random.Random(seed)
    one, other = bench.path(buffer_bytes=rng.choice([None, _SMALL_BUFFER_BYTES]))
    turns = [_acts(rng, one), _acts(rng, other)]
    while turns:
        turn = rng.choice(turns)
        if next(turn, "over") == "over":
            turns.remove(turn)
    saved = [_saved(bench, each) for each in (one, other)]
    if None in saved:
        return
    one.tunnel.settimeout(DEADLINE_S)
    other.tunnel.settimeout(DEADLINE_S)
    for sender, receiver, leftover in ((one, other, saved[1]), (other, one, saved[0])):
        sender.tunnel.send(_NEXT)
        got = leftover or b""
        # A RESET may have crossed the frame that ended the connection for its receiver: once, in front.
        while len(got.removeprefix(RESET)) < len(_NEXT):
            got += receiver.tunnel.recv(65536)
        assert got.removeprefix(RESET) == _NEXT


def _saved(bench: RelayBench, joined: JoinedTunnel) -> bytes | None:
    outcome = joined.finish.wait()
    if outcome.ending is Ending.COMPLETE:
        return outcome.leftover
    if outcome.settlement is None:
        return None
    joined.finish(outcome)
    return _settled(bench, joined, outcome.ending)
