"""The way of a stream from the shared tunnel to its own, at an agent as the destination: no byte twice, none lost."""

from collections.abc import Callable
from typing import Final
from unittest.mock import ANY

import pytest

from tests.mesh_stage import CANARY, PORT
from tests.shared_ground import ANSWERS, DENY, SPEAKS_FIRST, SharedGround, digest, some_bytes
from tests.shared_line import Line
from tests.shared_peer import SharedTunnel, attach, attach_payload, exchange
from tests.shared_stream import ATTACH, Stream
from tests.tunnel_peer import DATA, OPEN, RESET, VERDICT, frame, open_payload

pytestmark = pytest.mark.mesh

_SMALL: Final = 200_000
_BIG: Final = 5_000_000


@pytest.fixture
def own(ground: SharedGround) -> Line:
    """A tunnel that may become a stream's own."""
    return ground.dial()


def _attach(own: Line, stream: Stream) -> None:
    assert attach(own, attach_payload(stream.tunnel.token, stream.number)) == "ok"


def _move(own: Line, stream: Stream, *, attach_first: bool = True) -> None:
    """Move ``stream``.  A source says MOVED second; to a destination two TCP connections may bring it first."""
    if attach_first:
        _attach(own, stream)
        stream.move()
    else:
        stream.move()
        _attach(own, stream)
    stream.wait_until_moved()


@pytest.mark.parametrize("attach_first", [True, False], ids=["ATTACH first", "MOVED first"])
def test_a_stream_that_moves_loses_nothing(
    ground: SharedGround, tunnel: SharedTunnel, own: Line, attach_first: bool
) -> None:
    small, big = some_bytes(_SMALL, seed=1), some_bytes(_BIG, seed=2)
    other, stream = ground.open(tunnel), ground.open(tunnel)
    stream.send(small)  # and some of it is under way, both ways, when it moves
    _move(own, stream, attach_first=attach_first)
    before = bytes(stream.received)

    after = exchange(own, big)

    assert digest(before + after) == digest(small + big)
    record = ground.ended(stream, "ok", "-")
    assert record["sent_bytes"] == record["received_bytes"] == _SMALL + _BIG
    ground.echo(other, b"the others stay")
    ground.echo(ground.open(tunnel), b"and the tunnel too")
    assert len(ground.stage.application.accepted) == 3, "the moved one is the same connection"


def test_what_was_moved_to_serves_the_next_connection(ground: SharedGround, tunnel: SharedTunnel, own: Line) -> None:
    for _ in range(2):
        stream = ground.open(tunnel)
        ground.echo(stream, b"shared")
        _move(own, stream)
        assert exchange(own, b"own") == b"own"
        ground.ended(stream, "ok", "-")
    own.send(OPEN, open_payload(**ground.addresses(9)))
    assert own.read() == (VERDICT, 0, ANY)
    assert exchange(own, b"and none that was shared") == b"and none that was shared"
    assert len(ground.stage.records(3)) == 3


def test_an_end_that_was_said_is_said_again(ground: SharedGround, tunnel: SharedTunnel, own: Line) -> None:
    """The program answers at length, so its agent asks for a tunnel of its own, and it has our EOF already."""
    said = some_bytes(_BIG, seed=3)
    stream = ground.open(tunnel, ANSWERS)
    stream.send(said)
    stream.finish()
    stream.generous = False
    tunnel.take_in(lambda: stream.owns, "OWN")
    _move(own, stream)
    before = bytes(stream.received)

    after = exchange(own, b"")

    assert digest(before + after) == digest(said)
    record = ground.ended(stream, "ok", "-")
    assert record["sent_bytes"] == record["received_bytes"] == _BIG


def test_a_program_that_has_ended_before_is_said_to_have_again(
    ground: SharedGround, tunnel: SharedTunnel, own: Line
) -> None:
    stream = ground.open(tunnel, SPEAKS_FIRST)
    assert stream.wait_for_end() == b"a word"
    _move(own, stream)
    said = some_bytes(_BIG, seed=4)
    assert exchange(own, said) == b""
    assert ground.ended(stream, "ok", "-")["received_bytes"] == _BIG
    assert digest(ground.heard[0]) == digest(said)


def test_a_moved_stream_outlives_the_shared_tunnel(ground: SharedGround, tunnel: SharedTunnel, own: Line) -> None:
    stays, moves = ground.open(tunnel), ground.open(tunnel)
    ground.echo(stays, b"first")
    _move(own, moves)
    tunnel.line.cut()
    ground.ended(stays, "tunnel_lost", "TUNNEL_FAILURE")
    assert exchange(own, b"still here") == b"still here"
    ground.ended(moves, "ok", "-")


def test_the_end_of_the_own_tunnel_is_of_that_stream_only(
    ground: SharedGround, tunnel: SharedTunnel, own: Line
) -> None:
    stays, moves = ground.open(tunnel), ground.open(tunnel)
    ground.echo(moves, b"first")
    _move(own, moves)
    own.cut()
    ground.wait_for_endings("ConnectionResetError")
    ground.ended(moves, "tunnel_lost", "TUNNEL_FAILURE")
    ground.echo(stays, b"untouched")


def test_a_reset_in_the_own_tunnel_ends_the_stream(ground: SharedGround, tunnel: SharedTunnel, own: Line) -> None:
    stream = ground.open(tunnel)
    ground.echo(stream, b"first")
    _move(own, stream)
    own.send(RESET)
    assert own.read() == (RESET, 0, b"")
    ground.wait_for_endings("ConnectionResetError")
    ground.ended(stream, "downstream_reset", "RESET")
    ground.echo(ground.open(tunnel), b"the shared one does not mind")


def test_a_policy_that_changes_cuts_the_stream_where_it_is(
    ground: SharedGround, tunnel: SharedTunnel, own: Line
) -> None:
    stays, moves = ground.open(tunnel, ANSWERS), ground.open(tunnel)
    ground.echo(moves, b"first")
    _move(own, moves)
    with ground.stage.mesh.applied(DENY.format(port=PORT)):
        assert own.read() == (RESET, 0, b"policy_denied default/not-the-peer")
        assert own.is_closed_without_a_frame()
        ground.ended(moves, "policy_denied", "DENY")
    stays.send(b"not meant")
    stays.finish()
    assert stays.wait_for_end() == b"not meant"


# -- ends in the middle --------------------------------------------------------------------


def _reset(_: Line, stream: Stream) -> str:
    stream.abort()
    return "downstream_reset"


def _cut_shared(_: Line, stream: Stream) -> str:
    stream.tunnel.line.cut()
    return "tunnel_lost"


_ENDS: Final[dict[str, Callable[[Line, Stream], str]]] = {"RESET": _reset, "the shared tunnel's": _cut_shared}


@pytest.mark.parametrize("name", _ENDS)
def test_a_stream_that_ends_when_only_attach_has_come_takes_its_own_tunnel_along(
    ground: SharedGround, tunnel: SharedTunnel, own: Line, name: str
) -> None:
    stream = ground.open(tunnel)
    ground.echo(stream, b"first")
    _attach(own, stream)
    reason = _ENDS[name](own, stream)
    assert own.is_closed_without_a_frame()
    ground.wait_for_endings("ConnectionResetError")
    assert ground.record(stream)["close_reason"] == reason
    ground.stage.good_connection()


# -- ATTACH that belongs to nobody -----------------------------------------------------------


def _wrong_token(ground: SharedGround, stream: Stream) -> tuple[Line, bytes]:
    token = bytes(byte ^ 1 for byte in stream.tunnel.token)
    return ground.dial(), attach_payload(token, stream.number)


def _never_opened(ground: SharedGround, stream: Stream) -> tuple[Line, bytes]:
    return ground.dial(), attach_payload(stream.tunnel.token, stream.number + 1)


def _another_identity(ground: SharedGround, stream: Stream) -> tuple[Line, bytes]:
    return ground.dial("another"), attach_payload(stream.tunnel.token, stream.number)


def _another_address(ground: SharedGround, stream: Stream) -> tuple[Line, bytes]:
    return ground.dial(ip=ground.stage.server.ipv6), attach_payload(stream.tunnel.token, stream.number)


def _another_pod(ground: SharedGround, stream: Stream) -> tuple[Line, bytes]:
    other = ground.stage.mesh.pod("other", node=2, service_account="store")
    return ground.dial(ip=other.ipv4), attach_payload(stream.tunnel.token, stream.number)


def _over(ground: SharedGround, stream: Stream) -> tuple[Line, bytes]:
    over = ground.open(stream.tunnel, ANSWERS)
    over.finish()
    over.wait_for_end()
    return ground.dial(), attach_payload(stream.tunnel.token, over.number)


def _moved(ground: SharedGround, stream: Stream) -> tuple[Line, bytes]:
    moved = ground.open(stream.tunnel)
    _move(ground.dial(), moved)
    return ground.dial(), attach_payload(stream.tunnel.token, moved.number)


_NOBODYS: Final[dict[str, Callable[[SharedGround, Stream], tuple[Line, bytes]]]] = {
    "a wrong token": _wrong_token,
    "a stream never opened": _never_opened,
    "another identity": _another_identity,
    "another address": _another_address,
    "another pod": _another_pod,
    "a stream that is over": _over,
    "a stream that has moved": _moved,
}


@pytest.mark.parametrize("name", _NOBODYS)
def test_an_attach_that_belongs_to_nobody_is_refused_and_the_stream_goes_on(
    ground: SharedGround, tunnel: SharedTunnel, name: str
) -> None:
    stream = ground.open(tunnel)
    ground.echo(stream, b"secret")
    line, payload = _NOBODYS[name](ground, stream)

    assert attach(line, payload) == "unknown_destination", "the same answer, whatever it is"

    if name not in ("another pod", "another address"):
        line.send(OPEN, open_payload(**ground.addresses(9)))
        assert line.read() == (VERDICT, 0, ANY)
        assert exchange(line, b"its own") == b"its own", "idle again"
    ground.echo(stream, b"the stream has not noticed")
    stream.finish()
    assert stream.wait_for_end() == b""
    ground.ended(stream, "ok", "-")
    assert {record["close_reason"] for record in ground.stage.records(1)} == {"ok"}, "an ATTACH is no connection"


@pytest.mark.parametrize("name", ["a wrong token", "another identity", "a stream that is over"])
def test_bytes_behind_an_attach_that_belongs_to_nobody_reach_nobody(
    ground: SharedGround, tunnel: SharedTunnel, name: str
) -> None:
    stream = ground.open(tunnel)
    line, payload = _NOBODYS[name](ground, stream)
    line.send_raw(frame(ATTACH, payload) + frame(DATA, CANARY))
    got = line.read()
    assert got is not None
    assert got.kind == VERDICT
    assert line.is_closed_without_a_frame()
    ground.echo(stream, b"the stream has not noticed")
    assert CANARY[:8] not in ground.stage.application.heard


def test_a_stream_has_one_own_tunnel_only(ground: SharedGround, tunnel: SharedTunnel, own: Line) -> None:
    stream = ground.open(tunnel)
    _attach(own, stream)
    for _ in range(2):
        assert attach(ground.dial(), attach_payload(tunnel.token, stream.number)) == "unknown_destination"
    ground.echo(stream, b"shared yet")
    stream.move()
    stream.wait_until_moved()
    assert exchange(own, b"in the first one") == b"in the first one"
    ground.ended(stream, "ok", "-")


@pytest.mark.parametrize("length", [0, 19, 21])
def test_an_attach_of_another_length_is_a_protocol_error(
    ground: SharedGround, tunnel: SharedTunnel, own: Line, length: int
) -> None:
    stream = ground.open(tunnel)
    own.send(ATTACH, (attach_payload(tunnel.token, stream.number) + b"\0")[:length])
    assert own.is_closed_without_a_frame()
    ground.echo(stream, b"the stream has not noticed")
    assert [record["close_reason"] for record in ground.stage.records(1)] == ["protocol_error"]


def test_an_attach_within_a_connection_is_a_protocol_error(
    ground: SharedGround, tunnel: SharedTunnel, own: Line
) -> None:
    stream = ground.open(tunnel)
    own.send(OPEN, open_payload(**ground.addresses(9)))
    assert own.read() == (VERDICT, 0, ANY)
    own.send(ATTACH, attach_payload(tunnel.token, stream.number))
    while own.read() is not None:
        pass
    assert [record["close_reason"] for record in ground.stage.records(1)] == ["protocol_error"]
    ground.echo(stream, b"the stream has not noticed")
