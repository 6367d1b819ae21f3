"""One end of a shared tunnel, against a peer whose every byte the test writes."""

import socket
import ssl
import time

import pytest

from node_agent.errors import CloseReason
from node_agent.frames import Check, Open, Verdict, encode_open, encode_reset, encode_verdict
from node_agent.model import ObjectName, OriginalDestination, PeerAddress
from node_agent.relay import Ending, Outcome
from node_agent.stream_frames import MAX_STREAMS, WINDOW_BYTES, StreamFrameType
from tests.relay_builder import DEADLINE_S, SMALL_BUFFER_BYTES, RelayBench, read_all, was_reset
from tests.stream_builder import ACCEPTED, in_loop, open_payload
from tests.stream_peer import Agent, End, credit, data, frame, wait_until

_OPEN, _VERDICT, _DATA, _EOF, _RESET, _CREDIT, _OWN, _MOVED = StreamFrameType
_REFUSED = encode_verdict(Verdict(reason=CloseReason.DRAINED))[4:]
_MOST_DATA = 65536 - 8  # docs/tunnel-protocol.md


# -- frames that are not in order ----------------------------------------------------

_checking = Open(
    destination=OriginalDestination("10.0.0.1", 1),
    source=PeerAddress("10.0.0.2", 1),
    workload=ObjectName("a", "b"),
    check=Check(tls=False, timeout_s=1.0),
)
_BY_EITHER = {
    "data over the credit": data(1, 5 * WINDOW_BYTES),  # of which a program that does not read takes less than one
    "empty data": frame(_DATA, 1),
    "too long data": frame(_DATA, 1, length=_MOST_DATA + 1),
    "a giant": frame(_RESET, 1, length=0xFFFFFF),
    "a control frame over its limit": frame(_RESET, 1, length=16 * 1024 + 1),
    "data after the end": frame(_EOF, 1) + frame(_DATA, 1, b"x"),
    "a second end": frame(_EOF, 1) * 2,
    "an end with a payload": frame(_EOF, 1, b"x"),
    "type 0": frame(0, 1),
    "type 9": frame(9, 1),
    "type 255": frame(255, 1),
    "an unknown type for a finished stream": frame(_RESET, 1) + frame(9, 1),
    "stream 0": frame(_EOF, 0),
    "data for a stream that was never opened": frame(_DATA, 3, b"x"),
    "an end for a stream that was never opened": frame(_EOF, 0xFFFFFFFF),
    "credit of nothing": credit(1, 0),
    "too much credit": credit(1, WINDOW_BYTES + 1),
    "credit for what was not sent": credit(1, 1),
    "short credit": frame(_CREDIT, 1, b"\0\0\1"),
    "long credit": frame(_CREDIT, 1, b"\0\0\0\0\1"),
    "a move with a payload": frame(_MOVED, 1, b"x"),
    "http": b"GET / HTTP/1.1\r\n\r\n",
}
_BY_SOURCE = {
    "the same open again": frame(_OPEN, 1, open_payload(1)),
    "a falling number": frame(_OPEN, 7, open_payload(7)) + frame(_OPEN, 6, open_payload(6)),
    "the number of a finished stream": frame(_RESET, 1) + frame(_OPEN, 1, open_payload(1)),
    "open of stream 0": frame(_OPEN, 0, open_payload(1)),
    "open of garbage": frame(_OPEN, 3, b"\xc1\xc1"),
    "a check": frame(_OPEN, 3, encode_open(_checking)[4:]),
    "a verdict": frame(_VERDICT, 1, ACCEPTED),
    "a wish": frame(_OWN, 1),
    "data after the move": frame(_MOVED, 1) + frame(_DATA, 1, b"x"),
    "the end after the move": frame(_MOVED, 1) + frame(_EOF, 1),
    "a second move": frame(_MOVED, 1) * 2,
}
_BY_DESTINATION = {
    "an open": frame(_OPEN, 3, open_payload(3)),
    "a second verdict": frame(_VERDICT, 1, ACCEPTED),
    "a move of which nobody spoke": frame(_MOVED, 1),
    "a wish with a payload": frame(_OWN, 1, b"x"),
}


def _assert_fault(agent: Agent, ends: list[End]) -> None:
    for end in ends:
        assert end.finish.wait() == Outcome(ending=Ending.PROTOCOL_ERROR)
        assert was_reset(end.app) is not end.stream.down.has_ended  # what was an end in order has been delivered
    assert agent.is_closed()
    assert agent.shared.fault
    assert in_loop(agent.bench, lambda: agent.ends) == ["over"]
    assert agent.shared.is_over
    assert not agent.shared.streams


@pytest.mark.parametrize(
    ("source", "name"),
    [(True, name) for name in (*_BY_EITHER, *_BY_DESTINATION)] + [(False, name) for name in (*_BY_EITHER, *_BY_SOURCE)],
)
def test_what_is_not_in_order_ends_all_streams(bench: RelayBench, source: bool, name: str) -> None:
    agent = Agent(bench, source=source)
    first, second = agent.accepted(), agent.accepted()
    try:
        agent.send((_BY_EITHER | (_BY_DESTINATION if source else _BY_SOURCE))[name])
    except OSError:
        pass  # it was closed before it had all
    if "finished" in name:
        assert first.finish.wait().ending is Ending.PEER_RESET
        _assert_fault(agent, [second])
    else:
        _assert_fault(agent, [first, second])


@pytest.mark.parametrize("kind", [_DATA, _EOF, _RESET, _CREDIT, _OWN, _MOVED])
def test_nothing_comes_before_the_verdict(bench: RelayBench, kind: StreamFrameType) -> None:
    agent = Agent(bench, source=True)
    running = agent.accepted()
    verdicts: list[bytes | None] = []

    def ask() -> None:
        agent.shared.open(open_payload(2)).on_verdict = verdicts.append

    in_loop(bench, ask)
    agent.send(frame(kind, 2, {_DATA: b"x", _CREDIT: b"\0\0\0\1"}.get(kind, b"")))
    _assert_fault(agent, [running])
    assert verdicts == [None]


# -- what is in order -------------------------------------------------------------------


@pytest.mark.parametrize("source", [True, False], ids=["source", "destination"])
@pytest.mark.parametrize("over", ["reset by us", "reset by them", "ended by both"])
def test_frames_of_a_finished_stream_are_ignored(bench: RelayBench, source: bool, over: str) -> None:
    agent = Agent(bench, source=source)
    end, other = agent.accepted(), agent.accepted()
    if over == "reset by us":
        end.stream.cut(CloseReason.DRAINED)
        assert agent.read() == (_RESET, 1, encode_reset(CloseReason.DRAINED)[4:])
    elif over == "reset by them":
        agent.send(frame(_RESET, 1))
    else:
        agent.send(frame(_EOF, 1))
        end.app.shutdown(socket.SHUT_WR)
        assert agent.read() == (_EOF, 1, b"")
    end.finish.wait()
    late = (data(1, 20_000), frame(_EOF, 1), credit(1, 1), frame(_MOVED, 1), frame(_OWN, 1), frame(_RESET, 1))
    agent.send(*late, frame(_VERDICT, 1, ACCEPTED), frame(_DATA, 2, b"for the other"))
    assert other.app.recv(100) == b"for the other"
    assert agent.shared.fault is None
    assert end.finish.is_empty


@pytest.mark.parametrize("piece", [1, 7, 8, 9, 1000])
@pytest.mark.parametrize("source", [True, False], ids=["source", "destination"])
def test_frames_may_be_cut_anywhere(bench: RelayBench, source: bool, piece: int) -> None:
    agent = Agent(bench, source=source)
    ends = [agent.accepted(), agent.accepted()]
    whole = b"".join(frame(_DATA, number, b"%d:%d;" % (number, turn) * 20) for turn in range(3) for number in (1, 2))
    whole += frame(_RESET, 2, b"drained") + frame(_DATA, 1, b"last") + frame(_EOF, 1)
    for start in range(0, len(whole), piece):
        agent.send(whole[start : start + piece])
    assert read_all(ends[0].app) == b"".join(b"1:%d;" % turn * 20 for turn in range(3)) + b"last"
    assert ends[1].finish.wait() == Outcome(ending=Ending.PEER_RESET, reason=CloseReason.DRAINED)
    assert ends[1].stream.down_bytes == sum(len(b"2:%d;" % turn * 20) for turn in range(3))
    assert agent.shared.fault is None


@pytest.mark.parametrize("source", [True, False], ids=["source", "destination"])
def test_bytes_and_end_from_before_the_start_are_delivered(bench: RelayBench, source: bool) -> None:
    agent = Agent(bench, source=source)
    end = agent.accepted(start=False)
    agent.send(frame(_DATA, 1, b"early "), frame(_DATA, 1, b"bird"), frame(_EOF, 1))
    wait_until(lambda: end.stream.down.has_ended)
    agent.carry(end)
    assert read_all(end.app) == b"early bird"
    end.app.shutdown(socket.SHUT_WR)
    assert agent.read() == (_EOF, 1, b"")
    assert end.finish.wait() == Outcome(ending=Ending.COMPLETE)
    assert (end.stream.up_bytes, end.stream.down_bytes) == (0, 10)


def test_an_end_alone_from_before_the_start_is_delivered(bench: RelayBench) -> None:
    agent = Agent(bench, source=True)
    end = agent.accepted(start=False)
    agent.send(frame(_EOF, 1))
    wait_until(lambda: end.stream.down.has_ended)
    agent.carry(end)
    assert read_all(end.app) == b""


@pytest.mark.parametrize("source", [True, False], ids=["source", "destination"])
@pytest.mark.parametrize("how", ["reset", "lost"])
def test_an_ending_from_before_the_start_is_reported_then(bench: RelayBench, source: bool, how: str) -> None:
    agent = Agent(bench, source=source)
    end = agent.accepted(start=False)
    if how == "reset":
        agent.send(frame(_DATA, 1, b"unread"), frame(_RESET, 1, b"drained"))
    else:
        agent.tls.close()
    wait_until(lambda: end.stream.is_over)
    agent.carry(end)
    ending = Ending.PEER_RESET if how == "reset" else Ending.TUNNEL_LOST
    assert end.finish.wait().ending is ending
    assert was_reset(end.app)


def test_a_wish_from_before_the_start_is_heard_then(bench: RelayBench) -> None:
    agent = Agent(bench, source=True)
    end = agent.accepted(start=False)
    agent.send(data(1, WINDOW_BYTES), frame(_OWN, 1))
    wait_until(lambda: end.stream.held_bytes == WINDOW_BYTES)
    in_loop(bench, lambda: None)
    agent.carry(end)
    wait_until(lambda: end.wishes == [None])


def test_who_has_said_moved_says_nothing_more(bench: RelayBench) -> None:
    agent = Agent(bench, source=True)
    end = agent.accepted()
    own, theirs = bench.pairs.make()
    bench.sockets += [own, theirs]
    in_loop(bench, lambda: end.stream.move(own))
    assert agent.read() == (_MOVED, 1, b"")
    agent.send(data(1, 60_000))
    got = 0
    while got < 60_000:  # credit would be due
        got += len(end.app.recv(60_000))
    end.app.sendall(b"for the own tunnel")
    other = agent.accepted()  # asserts that its OPEN is the next frame
    agent.send(frame(_MOVED, 1))
    theirs.settimeout(DEADLINE_S)
    assert theirs.recv(100) == b"\3\0\0\x12for the own tunnel"
    other.app.sendall(b"x")
    assert agent.read() == (_DATA, 2, b"x")


# -- too many, refused ------------------------------------------------------------------


def test_more_streams_than_allowed_are_refused_until_one_ends(bench: RelayBench) -> None:
    agent = Agent(bench, source=False)
    last = MAX_STREAMS + 1
    agent.send(*(frame(_OPEN, number, open_payload(number)) for number in range(1, last + 1)))
    kind, number, payload = agent.read()
    assert (kind, number) == (_VERDICT, last)
    assert b"overloaded" in payload
    wait_until(lambda: len(agent.opened) == MAX_STREAMS == len(agent.shared.streams))
    agent.send(frame(_RESET, 1), frame(_OPEN, last + 1, open_payload(5)))
    wait_until(lambda: len(agent.opened) == MAX_STREAMS + 1)


def test_a_tunnel_that_refuses_keeps_what_it_has(bench: RelayBench) -> None:
    agent = Agent(bench, source=False)
    end = agent.accepted()
    agent.shared.refuses = _REFUSED
    agent.send(frame(_OPEN, 2, open_payload(2)), frame(_DATA, 1, b"on and on"))
    assert agent.read() == (_VERDICT, 2, _REFUSED)
    assert end.app.recv(100) == b"on and on"
    assert agent.opened == []


# -- a peer that does not read --------------------------------------------------------------


def test_a_blocked_tunnel_stops_the_programs_and_goes_on_in_order(bench: RelayBench) -> None:
    agent = Agent(bench, source=False, buffer_bytes=SMALL_BUFFER_BYTES)
    ends = [agent.accepted() for _ in range(8)]
    for end in ends:
        end.app.setblocking(False)
    written = dict.fromkeys(range(1, 9), 0)
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < 0.3:
        for number, end in enumerate(ends, 1):
            try:
                written[number] += end.app.send(b"%d" % number * 8192)
                quiet_since = time.monotonic()
            except BlockingIOError:
                time.sleep(0.002)
    assert all(end.stream.up_bytes < written[number] for number, end in enumerate(ends, 1)), "nobody was stopped"
    for number in range(9, 12):  # what is not DATA is not stopped, and waits its turn
        agent.send(frame(_OPEN, number, open_payload(number)))
        wait_until(lambda: len(agent.opened) > 0)
        stream = agent.opened.pop()[0]
        in_loop(bench, lambda s=stream: s.answer(ACCEPTED, is_refusal=False))  # type: ignore[misc]
    for end in ends:
        end.app.setblocking(True)
        end.app.shutdown(socket.SHUT_WR)
    verdicts: list[int] = []
    ended: set[int] = set()
    got = dict.fromkeys(range(1, 9), 0)
    while len(ended) < len(ends):
        kind, number, payload = agent.read()
        match kind:
            case StreamFrameType.VERDICT:
                verdicts.append(number)
            case StreamFrameType.EOF:
                ended.add(number)
            case StreamFrameType.DATA:
                assert payload == b"%d" % number * len(payload)
                got[number] += len(payload)
                agent.send(credit(number, len(payload)))
            case _:
                assert kind == StreamFrameType.OWN
    assert verdicts == [9, 10, 11]
    assert got == written


def test_a_peer_that_never_reads_its_verdicts_loses_the_tunnel(bench: RelayBench) -> None:
    agent = Agent(bench, source=False, buffer_bytes=SMALL_BUFFER_BYTES)
    agent.shared.refuses = encode_verdict(Verdict(reason=CloseReason.DRAINED, detail="x" * 1000))[4:]
    asked = b"".join(frame(_OPEN, number, open_payload(1)) for number in range(1, 50_000))
    with pytest.raises((ConnectionError, ssl.SSLError)):
        agent.send(asked)
    wait_until(lambda: agent.ends == ["over"])
