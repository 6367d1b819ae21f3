"""Bounded sockmap: what the kernel relays is as whole, as bounded and as ended as what the agent relays."""

import itertools
import logging
import os
import random
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bpf import status
from bpf.errors import BpfError
from node_agent.capture.sockmap import KernelSockmap, open_sockmap
from node_agent.relay import Ending
from tests.background import in_background
from tests.mesh_builder import wait_for
from tests.relay_builder import TlsPairs, read_all, reset, send_until_stuck, tcp_pair, was_reset
from tests.sockmap_builder import (
    DEADLINE_S,
    Joined,
    SockmapBench,
    entries,
    loaded,
    pattern,
    read_exactly,
    receive_pattern,
    send_pattern,
)

pytestmark = pytest.mark.mesh

_BULK_BYTES = 200_000_000
_BULK_PIECES = 1 << 18
_MANY = 200
_AT_ONCE = 20
_MOST_BUFFERED_BYTES = 64 << 20  # of sockets in a row, at both ends and in the agent; unbounded it was 3 GB
_OFFERED_BYTES = 400_000_000
_NO_BUFFER_HOLDS_BYTES = 12_000_000  # that nobody reads from


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    with loaded() as where:
        yield where


@pytest.fixture
def bench(root: Path) -> Iterator[SockmapBench]:
    made = SockmapBench(root)
    yield made
    made.close()
    assert set(entries(root).values()) == {0}, entries(root)


def _both_ways(joined: Joined, up: int, down: int, sizes: Iterator[int]) -> None:
    received: list[int] = []
    with in_background(
        lambda: send_pattern(joined.first, up, sizes=sizes),
        lambda: send_pattern(joined.second, down, sizes=sizes),
        lambda: received.append(receive_pattern(joined.first)),
    ):
        assert receive_pattern(joined.second) == up
    assert received == [down]


def test_small_messages_stay_in_the_kernel_and_are_counted_there(bench: SockmapBench) -> None:
    joined = bench.in_kernel()
    with bench.held_up():  # the agent can not have moved them
        before = joined.pair.up_bytes
        joined.talk(500, message=b"x" * 200)
        assert joined.pair.up_bytes == before + 500 * 200
        assert joined.pair.down_bytes == joined.pair.up_bytes
    assert bench.sockmap.demotions.total() == 0
    assert bench.sockmap.directions == 2
    joined.first.shutdown(socket.SHUT_WR)
    assert joined.second.recv(1) == b""
    joined.second.sendall(b"the last word")
    joined.second.close()
    assert read_all(joined.first) == b"the last word"
    assert joined.finish.wait().ending is Ending.COMPLETE
    assert joined.pair.down_bytes == joined.pair.up_bytes + len(b"the last word")
    assert not bench.sockmap.is_used


def test_bulk_both_ways_arrives_whole_five_times(bench: SockmapBench) -> None:
    for _ in range(5):
        joined = bench.in_kernel()
        before = joined.pair.up_bytes
        _both_ways(joined, _BULK_BYTES, _BULK_BYTES, itertools.repeat(_BULK_PIECES))
        assert joined.finish.wait().ending is Ending.COMPLETE
        assert (joined.pair.up_bytes, joined.pair.down_bytes) == (before + _BULK_BYTES, before + _BULK_BYTES)
    assert bench.sockmap.demotions["backlog"] > 0  # the kernel is slow for bulk: it was given back


def _plain(joined: Joined, rng: random.Random) -> None:
    """Both send what they like, and end."""
    sizes = _sizes(rng)
    up, down = rng.randint(1, 300_000), rng.randint(1, 300_000)
    with in_background(lambda: send_pattern(joined.first, up, sizes=sizes)):
        send_pattern(joined.second, down, sizes=_sizes(rng))
    assert receive_pattern(joined.second) == up
    assert receive_pattern(joined.first) == down


def _half_close(joined: Joined, rng: random.Random) -> None:
    """The second one answers when the first one has ended."""
    up, down = rng.randint(1, 100_000), rng.randint(1, 100_000)
    with in_background(lambda: send_pattern(joined.first, up, sizes=_sizes(rng))):
        assert receive_pattern(joined.second) == up
    with in_background(lambda: send_pattern(joined.second, down, sizes=itertools.cycle([1, 100, 20_000]))):
        assert receive_pattern(joined.first) == down


def _abrupt(joined: Joined, rng: random.Random) -> None:
    """The first one resets in the middle."""
    joined.first.sendall(b"x" * rng.randint(1, 50_000))
    reset(joined.first)
    assert was_reset(joined.second)


def _server_first(joined: Joined, rng: random.Random) -> None:
    """The second one speaks first, and ends first."""
    down = rng.randint(1, 100_000)
    with in_background(lambda: send_pattern(joined.second, down, sizes=_sizes(rng))):
        assert receive_pattern(joined.first) == down
    joined.first.sendall(b"heard")
    joined.first.close()
    assert read_all(joined.second) == b"heard"


def _sizes(rng: random.Random) -> Iterator[int]:
    while True:
        yield rng.randint(1, rng.choice([1, 100, 5_000, 131_072]))


@pytest.mark.parametrize("kind", [_plain, _half_close, _abrupt, _server_first])
def test_two_hundred_connections_end_as_they_should(bench: SockmapBench, kind: Any) -> None:
    seeds = iter(range(_MANY))
    endings: list[Ending] = []

    def some() -> None:
        for seed in seeds:
            rng = random.Random(seed)
            joined = bench.in_kernel() if seed % 4 else bench.join()
            kind(joined, rng)
            endings.append(joined.finish.wait().ending)
            joined.first.close()
            joined.second.close()

    with in_background(*([some] * _AT_ONCE)):
        pass
    assert endings == [Ending.PLAIN_RESET if kind is _abrupt else Ending.COMPLETE] * _MANY
    assert bench.sockmap.taken >= _MANY


def test_a_reader_that_stops_costs_no_more_than_socket_buffers_even_if_the_agent_has_no_time(
    bench: SockmapBench,
) -> None:
    joined = bench.in_kernel()
    joined.first.setblocking(False)
    with bench.held_up():
        sent = send_until_stuck(joined.first.send, bytes(1000), most_bytes=_OFFERED_BYTES)
        assert 0 < sent < _MOST_BUFFERED_BYTES
    wait_for("the agent to have the direction", lambda: bench.sockmap.directions == 1, deadline_s=DEADLINE_S)
    sent += send_until_stuck(joined.first.send, bytes(65536), most_bytes=_OFFERED_BYTES)
    assert sent < _MOST_BUFFERED_BYTES

    # The other direction is not held up by this one, though its sender does not read.
    with in_background(lambda: joined.second.sendall(bytes(20_000_000))):
        joined.first.settimeout(DEADLINE_S)
        got = 0
        while got < 20_000_000:
            got += len(joined.first.recv(1 << 20))

    while sent:
        sent -= len(joined.second.recv(1 << 20))
    before = bench.sockmap.taken
    _talk_until_in_kernel(bench, joined)
    assert bench.sockmap.taken == before
    joined.close()


def test_slow_readers_get_every_byte(bench: SockmapBench) -> None:
    """Nobody reads before all of them are held up; some then read little at a time.  All senders have half-closed."""

    def slow(joined: Joined, rng: random.Random) -> None:
        total = rng.randint(_NO_BUFFER_HOLDS_BYTES, 2 * _NO_BUFFER_HOLDS_BYTES)
        with in_background(lambda: send_pattern(joined.first, total, sizes=_sizes(rng))):
            wait_for("all to be held up", lambda: bench.sockmap.demotions["backlog"] >= 8, deadline_s=DEADLINE_S)
            assert receive_pattern(joined.second, most_bytes=rng.choice([2500, 60_000])) == total
        joined.second.sendall(b"thanks")
        joined.second.close()
        assert read_all(joined.first) == b"thanks"
        assert joined.finish.wait().ending is Ending.COMPLETE

    with in_background(*(lambda seed=seed: slow(bench.in_kernel(), random.Random(seed)) for seed in range(8))):
        pass


def test_a_direction_that_changes_hands_again_and_again_loses_nothing(bench: SockmapBench) -> None:
    joined = bench.in_kernel()
    at = 0
    for _ in range(6):
        _talk_until_in_kernel(bench, joined)
        before = bench.sockmap.demotions.total()
        sent = pattern(at, _NO_BUFFER_HOLDS_BYTES)
        at += len(sent)
        with in_background(lambda sent=sent: joined.second.sendall(sent)):  # type: ignore[misc]
            wait_for("the agent's turn", lambda: bench.sockmap.demotions.total() > before, deadline_s=DEADLINE_S)  # noqa: B023
            joined.first.sendall(b"the other direction goes on")
            assert read_exactly(joined.second, 27) == b"the other direction goes on"
            assert read_exactly(joined.first, len(sent)) == sent
    joined.close()
    assert joined.pair.down_bytes > at


def _talk_until_in_kernel(bench: SockmapBench, joined: Joined) -> None:
    def is_back() -> bool:
        joined.talk(100)
        return bench.sockmap.directions == 2

    wait_for("both directions to be calm, and the kernel's", is_back, deadline_s=DEADLINE_S)


def test_what_the_ring_does_not_tell_is_found_by_looking(bench: SockmapBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.sockmap, "_ring", _DeafRing())
    joined = bench.in_kernel()
    with in_background(lambda: send_pattern(joined.first, 5_000_000, sizes=itertools.repeat(_BULK_PIECES))):
        assert receive_pattern(joined.second) == 5_000_000
    joined.close()
    monkeypatch.undo()
    bench.loop.call_soon(lambda: bench.sockmap.read_ring(0))


class _DeafRing:
    """As a ring that had no room."""

    def read(self, *_: object, **__: object) -> Iterator[list[tuple[int, ...]]]:
        return iter(())


def test_a_full_map_leaves_further_connections_to_the_agent(
    bench: SockmapBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.sockmap, "_free", bench.sockmap._free[:2])  # 8,190 are in use, say
    inside = bench.in_kernel()
    outside = bench.join()
    outside.talk(50)
    assert bench.sockmap.full > 0
    assert bench.sockmap.pairs == 1
    assert outside.pair.up_bytes == outside.pair.down_bytes > 0
    inside.close()
    outside.close()


def test_tls_is_never_put_into_the_maps(bench: SockmapBench, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    client, server = TlsPairs().make()
    one, other = tcp_pair()
    nothing = (lambda: None, lambda: None)
    with caplog.at_level(logging.ERROR):
        for first, second in ((client, one), (one, client), (client, server)):
            assert bench.sockmap.join(first, second, tell=nothing) is None
            assert set(entries(root).values()) == {0}
    assert caplog.text.count("a SSLSocket is not a plain socket") == 3
    for each in (client, server, one, other):
        each.close()


def test_an_agent_that_can_not_have_it_is_told_why() -> None:
    with ExitStack() as stack:
        found, why = open_sockmap(Path("/sys/fs/bpf/rf_nothing"), stack)
        assert found is None
        assert "nothing is loaded; run `ringfence bpf load` before the agent" in why
        root = stack.enter_context(loaded("sockmap_old", kernel=(6, 15)))
        found, why = open_sockmap(root, stack)
        assert found is None
        assert "the feature sockmap is off here; `ringfence bpf status` says why" in why
        (feature,) = status.collect(root)["features"]
        assert (feature["on"], feature["reason"]) == (
            False,
            "needs Linux 6.16 (redirection between sockets that loses no bytes), this is 6.15",
        )


def test_two_agents_do_not_share_a_ring(bench: SockmapBench) -> None:
    with pytest.raises(BpfError, match="another agent relays in the kernel by these maps"):
        KernelSockmap(bench.root)


def test_a_killed_agent_leaves_no_connection_hanging_and_nothing_in_the_maps(root: Path) -> None:
    """The applications' ends are passed to us; the process that held the agents' ends is killed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            bench = SockmapBench(root)
            pairs = [bench.in_kernel() for _ in range(5)]
            ends = [fd for each in pairs for fd in (each.first.fileno(), each.second.fileno())]
            socket.send_fds(theirs, [b"ready"], ends)
            theirs.recv(1)  # for ever: only if the tests are killed it ends
        finally:
            os._exit(1)
    theirs.close()
    with ours:
        ours.settimeout(DEADLINE_S)
        _, fds, _, _ = socket.recv_fds(ours, 5, 10)
        assert entries(root)["sockmap_sources"] == 10
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    applications = [socket.socket(fileno=fd) for fd in fds]
    for each in applications:
        each.settimeout(DEADLINE_S)
        with each:
            was_reset(each)  # an end, of either kind
    left = entries(root)
    assert (left["sockmap_sources"], left["sockmap_sinks"]) == (0, 0)
    KernelSockmap(root).close()  # the next agent
    assert set(entries(root).values()) == {0}
