"""Who relays a direction: after a few small messages the kernel, and again when it is calm; else the agent."""

from unittest.mock import Mock

from hypothesis import given
from hypothesis import strategies as st

from node_agent.relay.ending import Ending
from node_agent.relay.sockmap_flow import CALM_READS, FIRST_READ_BYTES, SMALL_BYTES, Mode, SockmapFlow

_MOST = 1 << 18


class _Kernel:
    """As capture/kernel_flow.py, with the program's counters in the test's hands."""

    def __init__(self) -> None:
        self.moved_bytes = 0
        self.passed = 0
        self.consumed = 0
        self.wanted = False

    @property
    def is_demoted(self) -> bool:
        return self.passed != self.consumed

    def hold(self) -> None:
        self.wanted = False

    def take_up(self, user_bytes: int) -> bool:
        self.consumed = user_bytes
        self.wanted = self.passed == user_bytes
        return self.wanted

    def is_drained(self, user_bytes: int) -> bool:
        return user_bytes >= 0

    def is_whole(self, user_bytes: int) -> bool:
        return self.passed == user_bytes


def _flow() -> SockmapFlow:
    return SockmapFlow(Mock(), Mock(), source_broken=Ending.PLAIN_RESET, sink_broken=Ending.PEER_RESET)


def _calm(flow: SockmapFlow, reads: int) -> None:
    for _ in range(reads):
        flow.read(100, most_bytes=_MOST)


def _is_calm(flow: SockmapFlow) -> bool:
    return flow.is_calm


def _is_demoted(flow: SockmapFlow) -> bool:
    return flow.is_demoted


def _mode(flow: SockmapFlow) -> Mode:
    return flow.mode


def test_small_messages_make_it_calm_and_a_large_one_does_not() -> None:
    flow = _flow()
    _calm(flow, CALM_READS - 1)
    assert not _is_calm(flow)
    _calm(flow, 1)
    assert _is_calm(flow)
    flow.read(FIRST_READ_BYTES, most_bytes=_MOST)  # as much as there was room for: there is more
    assert not _is_calm(flow)
    assert flow.read_bytes == 4 * FIRST_READ_BYTES
    _calm(flow, CALM_READS)
    flow.read(SMALL_BYTES + 1, most_bytes=_MOST)
    assert not _is_calm(flow)


def test_what_could_not_be_sent_or_has_ended_is_never_given_to_the_kernel() -> None:
    flow = _flow()
    _calm(flow, CALM_READS)
    flow.held = memoryview(b"rest")
    assert not _is_calm(flow)
    flow.held = None
    flow.ended = True
    assert not _is_calm(flow)
    flow.ended = False
    flow.stalled()
    assert not _is_calm(flow)


def test_each_time_it_comes_back_more_is_asked_of_it() -> None:
    flow, kernel = _flow(), _Kernel()
    flow.join(kernel)
    asked = CALM_READS
    for _ in range(20):
        kernel.passed += 1000
        assert _is_demoted(flow)
        flow.drain()
        assert _mode(flow) is Mode.DRAINING
        assert not kernel.wanted
        assert not _is_demoted(flow), "it is told once"
        flow.mode = Mode.USER
        flow.read(1000, most_bytes=_MOST)
        asked = min(2 * asked, 4096)
        kernel.passed += 100 * (asked - 2)
        _calm(flow, asked - 2)
        assert not _is_calm(flow)
        kernel.passed += 100
        _calm(flow, 1)
        assert _is_calm(flow)
        assert flow.give_back()
        assert _mode(flow) is Mode.KERNEL


def test_it_is_not_given_back_while_the_kernel_has_left_bytes_that_were_not_read() -> None:
    flow, kernel = _flow(), _Kernel()
    flow.join(kernel)
    kernel.passed = 300
    flow.drain()
    flow.mode = Mode.USER
    flow.read(200, most_bytes=_MOST)
    assert not flow.give_back()
    assert not kernel.wanted
    assert _mode(flow) is Mode.USER
    flow.read(100, most_bytes=_MOST)
    assert flow.is_whole()
    assert flow.give_back()


@given(st.lists(st.tuples(st.booleans(), st.integers(min_value=1, max_value=1 << 20))))
def test_every_byte_is_counted_once_whoever_moved_it(moves: list[tuple[bool, int]]) -> None:
    flow, kernel = _flow(), _Kernel()
    flow.read(5, most_bytes=_MOST)
    flow.join(kernel)
    total = 5
    for by_kernel, moved in moves:
        total += moved
        if by_kernel:
            kernel.moved_bytes += moved
        else:
            flow.read(moved, most_bytes=_MOST)
        assert flow.moved_bytes == total
    flow.leave()
    assert flow.moved_bytes == total
    assert not flow.is_joined
