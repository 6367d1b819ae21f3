"""Streams of a shared tunnel at an agent as the destination: whole, each for itself, and none at another's cost."""

from typing import Final

import pytest

from tests.mesh_builder import wait_for
from tests.mesh_stage import PORT
from tests.shared_ground import ANSWERS, DENY, RESETS, SPEAKS_FIRST, STOPS, SharedGround, digest, some_bytes
from tests.shared_peer import SharedTunnel
from tests.shared_stream import CREDIT, MOVED, WINDOW, Stream, credit_payload
from tests.tunnel_peer import DATA, EOF, RESET

pytestmark = pytest.mark.mesh

_QUIET_S: Final = 2.0
_STREAMS_AT_A_TIME: Final = 256  # what a destination takes


def test_streams_carry_bytes_both_ways_side_by_side(ground: SharedGround, tunnel: SharedTunnel) -> None:
    mesh = ground.stage.mesh
    ended = mesh.metric(2, "ringfence_connections_closed_total", direction="inbound", close_reason="ok")
    streams = [ground.open(tunnel) for _ in range(5)]
    for turn in range(3):
        for stream in streams:
            stream.send(some_bytes(1000 * stream.number, seed=turn))
    for stream in streams:
        said = b"".join(some_bytes(1000 * stream.number, seed=turn) for turn in range(3))
        assert digest(stream.receive(3000 * stream.number)) == digest(said)
    for stream in reversed(streams):
        stream.finish()
        assert stream.wait_for_end() == b""
    for stream in streams:
        record = ground.ended(stream, "ok", "-")
        assert record["sent_bytes"] == record["received_bytes"] == 3000 * stream.number
    assert ground.stage.application.accepted == [ground.stage.attacker.ipv4] * 5
    assert len({ground.record(stream)["id"] for stream in streams}) == 5
    assert mesh.metric(2, "ringfence_connections_closed_total", direction="inbound", close_reason="ok") == ended + 5
    ground.echo(ground.open(tunnel), b"and the tunnel goes on")


def test_more_than_a_window_goes_through_on_credit(ground: SharedGround, tunnel: SharedTunnel) -> None:
    """A source that does not move is served all the same."""
    said = some_bytes(20 * WINDOW + 1, seed=1)
    stream = ground.open(tunnel)
    stream.send(said)
    assert digest(stream.receive(len(said))) == digest(said)
    assert stream.owns <= 1, "the destination may ask; it need not be heard"
    stream.finish()
    assert stream.wait_for_end() == b""
    record = ground.ended(stream, "ok", "-")
    assert record["sent_bytes"] == record["received_bytes"] == len(said)


def test_an_end_of_one_direction_leaves_the_other(ground: SharedGround, tunnel: SharedTunnel) -> None:
    asks, hears = ground.open(tunnel, ANSWERS), ground.open(tunnel, SPEAKS_FIRST)
    asks.send(b"a question")
    asks.finish()
    assert asks.wait_for_end() == b"a question"
    assert hears.wait_for_end() == b"a word"
    hears.send(b"said behind its end")
    hears.finish()
    wait_for("both programs", lambda: len(ground.heard) == 2)
    assert ground.heard == [b"a question", b"said behind its end"]
    ground.ended(asks, "ok", "-")
    ground.ended(hears, "ok", "-")


@pytest.mark.parametrize("why", [b"", b"of a later version"], ids=["a program's", "with a reason"])
def test_our_reset_ends_one_stream_only(ground: SharedGround, tunnel: SharedTunnel, why: bytes) -> None:
    cut, other = ground.open(tunnel), ground.open(tunnel)
    ground.echo(cut, b"first")
    ground.echo(other, b"other")
    cut.abort(why)
    ground.wait_for_endings("ConnectionResetError")
    record = ground.ended(cut, "downstream_reset", "RESET")
    assert record["sent_bytes"] == record["received_bytes"] == len(b"first")
    ground.echo(other, b"other still")
    ground.echo(ground.open(tunnel), b"and a new one")


def test_a_programs_reset_ends_one_stream_only(ground: SharedGround, tunnel: SharedTunnel) -> None:
    other, cut = ground.open(tunnel), ground.open(tunnel, RESETS)
    cut.send(b"go")
    assert cut.wait_for_reset() == b""
    ground.ended(cut, "upstream_reset", "RESET")
    ground.echo(other, b"other still")


def test_a_reset_before_the_verdict_takes_the_open_back(ground: SharedGround, tunnel: SharedTunnel) -> None:
    taken_back = ground.begin(tunnel)
    taken_back.abort()
    ground.echo(ground.open(tunnel), b"the next")
    assert ground.record(taken_back)["close_reason"] in ("downstream_reset", "ok")


def test_a_refusal_is_of_one_stream_only(ground: SharedGround, tunnel: SharedTunnel) -> None:
    stage = ground.stage
    runs = ground.open(tunnel)
    with stage.mesh.applied(DENY.format(port=ANSWERS)):
        denied = ground.begin(tunnel, ANSWERS)
        closed = ground.begin(tunnel, 9)
        forged = tunnel.begin(destination=(stage.server.ipv4, PORT), source=("10.247.1.200", 40_004))
        elsewhere = tunnel.begin(destination=(stage.client.ipv4, PORT), source=(stage.attacker.ipv4, 40_005))
        accepted = ground.open(tunnel)
    refused = (denied, closed, forged, elsewhere)
    tunnel.take_in(lambda: all(stream.verdict for stream in refused), "their verdicts")
    assert [stream.reason for stream in refused] == [
        "policy_denied",
        "connect_refused",
        "source_mismatch",
        "unknown_destination",
    ]
    assert denied.verdict is not None
    assert denied.verdict["policy"] == "default/not-the-peer"
    ground.ended(denied, "policy_denied", "DENY")
    ground.ended(closed, "connect_refused", "CONNECT")
    ground.ended(elsewhere, "unknown_destination", "CONNECT")
    ground.echo(accepted, b"in the same tunnel")
    ground.echo(runs, b"before and after")
    assert stage.application.accepted == [stage.attacker.ipv4] * 2


def test_a_policy_that_changes_cuts_one_stream_only(ground: SharedGround, tunnel: SharedTunnel) -> None:
    other, cut = ground.open(tunnel, ANSWERS), ground.open(tunnel)
    ground.echo(cut, b"allowed yet")
    with ground.stage.mesh.applied(DENY.format(port=PORT)):
        assert cut.wait_for_reset() == b"policy_denied default/not-the-peer"
        ground.wait_for_endings("ConnectionResetError")
        ground.ended(cut, "policy_denied", "DENY")
        other.send(b"not meant")
        other.finish()
        assert other.wait_for_end() == b"not meant"


_CROSSED: Final = {
    "DATA": (DATA, b"too late"),
    "EOF": (EOF, b""),
    "RESET": (RESET, b""),
    "RESET that says why": (RESET, b"drained"),
    "CREDIT": (CREDIT, credit_payload(1000)),
    "MOVED": (MOVED, b""),
}


@pytest.mark.parametrize("name", _CROSSED)
def test_what_comes_for_a_stream_that_is_over_is_ignored(ground: SharedGround, tunnel: SharedTunnel, name: str) -> None:
    over: list[Stream] = []
    finished = ground.open(tunnel)
    finished.finish()
    finished.wait_for_end()
    over.append(finished)
    reset = ground.open(tunnel)
    reset.abort()
    over.append(reset)
    was_reset = ground.open(tunnel, RESETS)
    was_reset.send(b"go")
    was_reset.wait_for_reset()
    over.append(was_reset)
    refused = ground.begin(tunnel, 9)
    tunnel.take_in(lambda: refused.verdict is not None, "a verdict")
    over.append(refused)
    kind, payload = _CROSSED[name]
    for stream in over:
        for _ in range(2):
            tunnel.send(kind, stream.number, payload)
    ground.echo(ground.open(tunnel), b"the next")
    assert bytes(ground.stage.application.heard) == b"the next"
    assert [ground.record(stream)["close_reason"] for stream in over] == [
        "ok",
        "downstream_reset",
        "upstream_reset",
        "connect_refused",
    ]


def test_numbers_may_be_left_out(ground: SharedGround, tunnel: SharedTunnel) -> None:
    """They ascend; one that was skipped is over."""
    stream = tunnel.open(**ground.addresses(7), number=7)
    tunnel.send(DATA, 3, b"for nobody")
    ground.echo(stream, b"seven")
    ground.echo(tunnel.open(**ground.addresses(8), number=4_000_000_000), b"and many")


def test_there_are_so_many_streams_at_a_time_and_no_more(ground: SharedGround, tunnel: SharedTunnel) -> None:
    streams = [ground.begin(tunnel) for _ in range(300)]
    tunnel.take_in(lambda: all(stream.verdict for stream in streams), "300 verdicts")
    accepted = [stream for stream in streams if stream.reason == "ok"]
    refused = [stream for stream in streams if stream.reason != "ok"]
    assert (len(accepted), {stream.reason for stream in refused}) == (_STREAMS_AT_A_TIME, {"overloaded"})
    for stream in accepted:
        stream.send(b"%d" % stream.number)
        stream.finish()
    for stream in accepted:
        assert stream.wait_for_end() == b"%d" % stream.number
    assert len(ground.stage.application.accepted) == _STREAMS_AT_A_TIME
    records = ground.stage.records(_STREAMS_AT_A_TIME)
    assert [record["close_reason"] for record in records].count("ok") == _STREAMS_AT_A_TIME
    ground.echo(ground.open(tunnel), b"when others are over there is room")


def test_a_program_that_does_not_read_is_given_the_credit_and_no_more(
    ground: SharedGround, tunnel: SharedTunnel
) -> None:
    said = some_bytes(32 << 20, seed=2)  # more than the kernel keeps for a socket
    stopped, other = ground.open(tunnel, STOPS), ground.open(tunnel)
    sent = 0
    try:
        while True:
            sent += stopped.fill(said[sent:])
            assert sent < len(said), "there is an end to what is taken"
            tunnel.take_in(lambda: stopped.credit, "credit", within_s=_QUIET_S)
    except TimeoutError:
        pass  # a program that does not read gives none
    for turn in range(20):
        ground.echo(other, some_bytes(10_000, seed=turn))
    ground.may_read.set()
    stopped.send(b"and then it reads")
    stopped.finish()
    assert stopped.wait_for_end() == b""
    wait_for("the program to have read all", lambda: ground.heard)
    assert digest(ground.heard[0]) == digest(said[:sent] + b"and then it reads")
    assert ground.ended(stopped, "ok", "-")["received_bytes"] == len(ground.heard[0])


def test_a_peer_that_gives_no_credit_gets_what_it_gave_before(ground: SharedGround, tunnel: SharedTunnel) -> None:
    """And is asked for a tunnel of the stream's own, once."""
    said = some_bytes(5 * WINDOW, seed=3)
    asks, other = ground.begin(tunnel, ANSWERS), ground.open(tunnel)
    asks.generous = False
    asks.send(said)
    asks.finish()
    tunnel.take_in(lambda: asks.given == 0 and asks.owns, "all that there is credit for, and OWN")
    for turn in range(20):
        ground.echo(other, some_bytes(10_000, seed=turn))
    assert len(asks.received) == WINDOW
    asks.give(1)
    tunnel.take_in(lambda: asks.given == 0, "one byte more")
    asks.generous = True
    asks.give(WINDOW)
    assert digest(asks.wait_for_end()) == digest(said)
    assert asks.owns == 1
    record = ground.ended(asks, "ok", "-")
    assert record["sent_bytes"] == record["received_bytes"] == len(said)


@pytest.mark.parametrize("how", ["RST", "TLS goodbye"])
def test_the_end_of_the_tunnel_is_a_reset_for_every_program(
    ground: SharedGround, tunnel: SharedTunnel, how: str
) -> None:
    streams = [ground.open(tunnel) for _ in range(3)]
    for stream in streams:
        ground.echo(stream, b"first")
    streams[0].finish()
    streams[0].wait_for_end()
    ground.record(streams[0])
    if how == "RST":
        tunnel.line.cut()
    else:
        tunnel.line.shut_down()
    ground.wait_for_endings("EOF", "ConnectionResetError", "ConnectionResetError")
    ground.ended(streams[0], "ok", "-")
    for stream in streams[1:]:
        record = ground.ended(stream, "tunnel_lost", "TUNNEL_FAILURE")
        assert record["sent_bytes"] == record["received_bytes"] == len(b"first")


def test_a_tunnel_whose_streams_are_over_may_be_left(ground: SharedGround, tunnel: SharedTunnel) -> None:
    stream = ground.open(tunnel)
    stream.finish()
    stream.wait_for_end()
    ground.ended(stream, "ok", "-")
    tunnel.line.shut_down()
    ground.stage.good_connection()
    assert len(ground.stage.records(1)) == 1, "the end of an idle tunnel is nobody's"
