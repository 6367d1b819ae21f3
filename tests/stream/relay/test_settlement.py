"""After an application's reset both agents agree where the next connection begins, or the tunnel is gone."""

import queue
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from node_agent.errors import CloseReason
from node_agent.frames import FrameType, encode_reset
from node_agent.relay import Ending, Settlement
from node_agent.relay.skim import Skimmer
from tests.relay_builder import (
    DEADLINE_S,
    EOF,
    QUIET_S,
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


# -- at the same moment -------------------------------------------------------------


def _held_back(bench: RelayBench, act: Callable[[], None]) -> None:
    """Do something while the relay loop does nothing, so that it sees all of it at once."""
    is_held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        is_held.set()
        go_on.wait(DEADLINE_S)

    bench.loop.call_soon(lambda: bench.loop.call_later(0, hold))  # what comes then: events first, calls after them
    is_held.wait(DEADLINE_S)
    act()
    go_on.set()


def test_open_behind_the_peers_eof_survives_an_application_that_resets_at_the_end(bench: RelayBench) -> None:
    """Both directions have ended for the peer, which may go on at once, in the same record (section 4)."""
    joined = bench.tunnel(source_side=False)
    joined.app.shutdown(socket.SHUT_WR)
    assert joined.peer.read_stream() == (b"", FrameType.EOF)

    def ends() -> None:
        joined.peer.send(EOF + _NEXT)
        reset(joined.app)

    _held_back(bench, ends)
    assert _settled(bench, joined, Ending.PLAIN_RESET) == _NEXT


def test_tunnel_that_is_abandoned_as_the_answer_comes_is_closed(bench: RelayBench) -> None:
    """Nobody is there any more to take it back."""
    joined = bench.tunnel()
    reset(joined.app)
    assert joined.peer.read_stream() == (b"", FrameType.RESET)
    settlement = joined.finish.wait().settlement
    assert settlement is not None

    def answers() -> None:
        joined.peer.send(RESET)
        settlement.abandon()

    _held_back(bench, answers)
    joined.peer.read_end()
    assert joined.tunnel.fileno() == -1


def test_answer_that_lies_in_ssl_already_is_read(bench: RelayBench) -> None:
    joined = bench.tunnel(start=False)
    joined.peer.send(b"!" + RESET)
    joined.tunnel.settimeout(DEADLINE_S)
    assert joined.tunnel.recv(1) == b"!"
    joined.tunnel.setblocking(False)
    assert _by_itself(bench, joined, to_write=[memoryview(RESET)], leftover=None).get(timeout=DEADLINE_S) == b""


def test_bytes_behind_the_peers_end_do_not_keep_the_loop_busy(
    bench: RelayBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = bench.tunnel(start=False, buffer_bytes=_SMALL_BUFFER_BYTES)
    joined.peer.send(_NEXT)
    calls = []
    take_over = bench.loop.take_over

    def counted(fd: int, mask: int, handler: Callable[[int], None]) -> None:
        def count(event: int) -> None:
            calls.append(event)
            handler(event)

        take_over(fd, mask, count)

    monkeypatch.setattr(bench.loop, "take_over", counted)
    frames = memoryview(data(b"x" * 200_000) + RESET)
    result = _by_itself(bench, joined, to_write=[frames], leftover=b"")
    time.sleep(QUIET_S)  # blocked, until we read
    assert joined.peer.read_stream() == (b"x" * 200_000, FrameType.RESET)
    assert result.get(timeout=DEADLINE_S) == b""
    assert len(calls) < 500


def _by_itself(
    bench: RelayBench, joined: JoinedTunnel, *, to_write: list[memoryview], leftover: bytes | None
) -> queue.Queue[bytes | None]:
    """Settle the tunnel of a pair that was not started; what comes of it is put into the queue."""
    settlement = Settlement(
        loop=bench.loop, tunnel=joined.tunnel, to_write=to_write, skimmer=Skimmer(), leftover=leftover
    )
    result: queue.Queue[bytes | None] = queue.Queue()
    settlement.tell(lambda: result.put(settlement.leftover))

    def start() -> None:
        bench.loop.adopt(joined.tunnel.fileno(), 0, lambda _: None)
        settlement.start()

    bench.loop.call_soon(start)
    return result


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
