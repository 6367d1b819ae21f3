"""An agent as the source of shared tunnels: what it offers and shares, and what it moves to a tunnel of its own."""

import socket
from typing import Final

import msgpack
import pytest

from tests.mesh_builder import read_all
from tests.shared_ground import digest, some_bytes
from tests.shared_line import Line
from tests.shared_name import attach_name
from tests.shared_peer import exchange
from tests.shared_scene import Scene, is_reset
from tests.shared_stream import OWN, WINDOW, Stream
from tests.tunnel_peer import OPEN, VERDICT, verdict_payload

pytestmark = pytest.mark.mesh

_BIG: Final = 3_000_000
_MOVED: Final = 'ringfence_tunnel_moves_total{result="moved"}'
_NOT_MOVED: Final = 'ringfence_tunnel_moves_total{result="failed"}'


# -- sharing ---------------------------------------------------------------------------------


def test_several_connections_share_one_tunnel(scene: Scene) -> None:
    connections = [scene.connect() for _ in range(4)]
    tunnel = scene.destination.shared()
    streams = scene.accepted_all(tunnel, connections)
    assert sorted(stream.number for stream in streams) == [1, 2, 3, 4]
    assert scene.destination.hellos[0].count(b"\x0bringfence/2\x0bringfence/1") == 1, "both, in this order"

    addresses = ["{}:{}".format(*connection.getsockname()) for connection in connections]
    for number, (connection, stream) in enumerate(zip(connections, streams, strict=True)):
        connection.sendall(b"request %d" % number)
        assert stream.receive(9) == b"request %d" % number
    for number, (connection, stream) in reversed(list(enumerate(zip(connections, streams, strict=True)))):
        stream.send(b"response %d" % number)
        stream.finish()
        assert read_all(connection) == b"response %d" % number
        connection.close()
        assert stream.wait_for_end() == b""
    assert len(scene.destination.lines) == 1
    records = [scene.mesh.record(1, direction="outbound", source_address=address) for address in addresses]
    assert [(record["close_reason"], record["sent_bytes"], record["received_bytes"]) for record in records] == [
        ("ok", 10, 9)
    ] * 4


def test_the_next_connection_takes_the_tunnel_that_is_there(scene: Scene) -> None:
    first = scene.connect()
    tunnel = scene.destination.shared()
    stream = scene.accepted(tunnel, first)
    first.shutdown(socket.SHUT_WR)
    assert stream.wait_for_end() == b""
    stream.send(b"late")
    stream.finish()
    assert read_all(first) == b"late", "the other direction went on"
    scene.ended(first, "ok", len(b"late"), 0)
    for _ in range(3):
        again = scene.connect()
        stream = scene.accepted(tunnel, again)
        again.sendall(b"more")
        assert stream.receive(4) == b"more"
        stream.finish()
        assert again.recv(1) == b""
        again.close()
        stream.wait_for_end()
    assert len(scene.destination.hellos) == 1


def test_a_reset_by_either_end_leaves_the_others(scene: Scene) -> None:
    stays = scene.connect()
    tunnel = scene.destination.shared()
    stream = scene.accepted(tunnel, stays)
    theirs = scene.connect()
    scene.accepted(tunnel, theirs).abort()
    assert is_reset(theirs)
    ours = scene.connect()
    reset = scene.accepted(tunnel, ours)
    address = ours.getsockname()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    ours.close()
    assert reset.wait_for_reset() == b""
    with_reason = scene.connect()
    scene.accepted(tunnel, with_reason).abort(b"policy_denied default/no")
    assert is_reset(with_reason)
    stays.sendall(b"still here")
    assert stream.receive(10) == b"still here"
    scene.ended(theirs, "upstream_reset", 0, 0)
    scene.ended(with_reason, "policy_denied", 0, 0)
    record = scene.mesh.record(1, direction="outbound", source_address=f"{address[0]}:{address[1]}")
    assert record["close_reason"] == "downstream_reset"


def test_a_refusal_is_of_one_connection_only(scene: Scene) -> None:
    stays = scene.connect()
    tunnel = scene.destination.shared()
    stream = scene.accepted(tunnel, stays)
    refused = scene.connect()
    tunnel.accept().answer("policy_denied", "no")
    assert is_reset(refused)
    scene.ended(refused, "policy_denied", 0, 0)
    stream.send(b"still here")
    assert stays.recv(10) == b"still here"
    assert len(scene.destination.hellos) == 1


def test_a_tunnel_that_is_lost_resets_every_program_in_it(scene: Scene) -> None:
    connections = [scene.connect()]
    tunnel = scene.destination.shared()
    scene.accepted(tunnel, connections[0])
    connections.append(scene.connect())
    scene.accepted(tunnel, connections[1]).send(b"not all of it")
    tunnel.line.cut()
    for connection in connections:
        assert is_reset(connection)
        assert scene.record(connection)["close_reason"] == "tunnel_lost"
    after = scene.connect()
    stream = scene.accepted(scene.destination.shared(), after)
    stream.send(b"in a new one")
    assert after.recv(12) == b"in a new one"


def test_a_hundred_share_a_tunnel_and_the_next_have_another(scene: Scene) -> None:
    connections = [scene.connect() for _ in range(130)]
    first = scene.destination.shared()
    accepted = [first.accept() for _ in range(100)]
    second = scene.destination.shared()
    accepted += [second.accept() for _ in range(30)]
    for stream in accepted:
        stream.answer()
        stream.send(b"welcome")
    for connection in connections:
        assert connection.recv(7, socket.MSG_WAITALL) == b"welcome"
    assert len({stream.asked["src"][1] for stream in accepted if stream.asked}) == 130
    first.settle(0.2)
    assert len(first.streams) == 100
    assert len(scene.destination.hellos) == 2
    scene.shows("ringfence_shared_connections", 130)
    scene.shows("ringfence_tunnels_busy", 2)
    assert scene.mesh.metrics(1)["ringfence_tunnels_shared"] >= 2


def test_an_idle_tunnel_that_the_destination_leaves_costs_nobody_anything(scene: Scene) -> None:
    for _ in range(2):
        connection = scene.connect()
        tunnel = scene.destination.shared()
        stream = scene.accepted(tunnel, connection)
        stream.finish()
        assert read_all(connection) == b""
        connection.close()
        assert stream.wait_for_end() == b""
        tunnel.line.shut_down()
    reasons = [record["close_reason"] for record in scene.mesh.records(1, direction="outbound")]
    assert set(reasons) <= {"ok"}


def test_a_connection_whose_tunnel_is_lost_before_the_verdict_is_tried_in_another(scene: Scene) -> None:
    """It had been used before: what was lost may have been an idle one that just ended."""
    used = scene.connect()
    tunnel = scene.destination.shared()
    scene.accepted(tunnel, used)
    connection = scene.connect()
    tunnel.accept()
    tunnel.line.cut()
    assert is_reset(used)
    stream = scene.accepted(scene.destination.shared(), connection)
    connection.sendall(b"none the wiser")
    assert stream.receive(14) == b"none the wiser"


def test_a_verdict_that_does_not_come_in_time_takes_the_open_back(scene: Scene) -> None:
    stays = scene.connect()
    tunnel = scene.destination.shared()
    other = scene.accepted(tunnel, stays)
    late = scene.connect()
    unanswered = tunnel.accept()
    assert unanswered.wait_for_reset() == b""
    assert is_reset(late)
    assert scene.record(late)["close_reason"] == "verdict_timeout"
    tunnel.send(VERDICT, unanswered.number, verdict_payload())
    stays.sendall(b"still here")
    assert other.receive(10) == b"still here"


def test_with_version_1_each_has_a_tunnel_to_itself(scene: Scene) -> None:
    """At a destination of its own: the agent remembers for a while who does not share."""
    with scene.another_destination("of-old", ("ringfence/1",)) as (destination, ip):
        connections = [scene.connect(ip), scene.connect(ip)]
        lines = [destination.line(), destination.line()]
        for line in lines:
            assert line.protocol == "ringfence/1"
            got = line.read("OPEN")
            assert got is not None
            assert got.kind == OPEN
            assert msgpack.unpackb(got.payload)["dst"] == [ip, scene.port]
            line.send(VERDICT, verdict_payload())
        for connection in connections:
            scene.sends(connection, b"hello")
        for line in lines:
            assert exchange(line, b"welcome") == b"hello"
        for connection in connections:
            assert read_all(connection) == b"welcome"
            scene.ended(connection, "ok", 7, 5)


# -- moving ------------------------------------------------------------------------------------


def _go_on_in(line: Line, stream: Stream) -> None:
    """The destination's part of a move whose ATTACH has come."""
    stream.wait_until_moved()
    stream.move()


def test_a_bulk_upload_moves_to_a_tunnel_of_its_own(scene: Scene) -> None:
    request, response = some_bytes(_BIG, seed=1), some_bytes(_BIG, seed=2)
    before = scene.mesh.metrics(1)
    stays, moves = scene.connect(), scene.connect()
    tunnel = scene.destination.shared()
    other, stream = scene.accepted_all(tunnel, [stays, moves])
    stream.generous = False
    scene.sends(moves, request)
    line = scene.destination.attached(stream)
    stream.send(response[:10_000])
    _go_on_in(line, stream)
    assert WINDOW - stream.given == len(stream.received), "within the credit until it moved"

    received = scene.reads(moves)
    after = exchange(line, response[10_000:])
    scene.join()

    assert digest(bytes(stream.received) + after) == digest(request)
    assert digest(received[0]) == digest(response)
    scene.ended(moves, "ok", _BIG, _BIG)
    stays.sendall(b"small ones stay")
    assert other.receive(15) == b"small ones stay"
    scene.shows("ringfence_shared_connections", 1)
    scene.shows(_MOVED, before[_MOVED] + 1)
    scene.shows(_NOT_MOVED, before[_NOT_MOVED])


def test_a_destination_of_several_processes_is_told_which_of_them_is_meant(scene: Scene) -> None:
    """From the first time on that a tunnel comes to one which does not know the stream; before nobody is told."""
    connections = [scene.connect(), scene.connect()]
    tunnel = scene.destination.shared()
    for turn, stream in enumerate(scene.accepted_all(tunnel, connections)):
        tunnel.send(OWN, stream.number)
        if not turn:
            scene.destination.attached(stream, answer="unknown_destination")
        line = scene.destination.attached(stream)
        _go_on_in(line, stream)
        scene.sends(connections[turn], b"request")
        received = scene.reads(connections[turn])
        assert exchange(line, b"response") == b"request"
        scene.join()
        assert received == [b"response"]
        scene.destination.lines.remove(line)  # the next stream gets another
        line.close()
    name = attach_name(tunnel.token).encode()
    assert [name in hello for hello in scene.destination.hellos] == [False, False, True, True]
    assert [b"attach" in hello for hello in scene.destination.hellos] == [False, False, True, True]


def test_a_destination_that_asks_gets_a_tunnel_for_the_stream(scene: Scene) -> None:
    """And when the stream is over, that tunnel serves the next that moves."""
    tunnel = None
    line = None
    for turn in range(2):
        connection = scene.connect()
        tunnel = tunnel or scene.destination.shared()
        stream = scene.accepted(tunnel, connection)
        stream.send(b"a piece")
        tunnel.send(OWN, stream.number)
        line = scene.destination.attached(stream, line)
        _go_on_in(line, stream)
        said = some_bytes(_BIG, seed=turn)
        scene.sends(connection, said)
        heard = scene.reads(connection)
        assert digest(exchange(line, said)) == digest(said)
        scene.join()
        assert digest(heard[0]) == digest(b"a piece" + said)
        scene.ended(connection, "ok", len(b"a piece") + _BIG, _BIG)
    assert len(scene.destination.hellos) == 2


def test_an_end_that_was_said_is_said_again_in_the_own_tunnel(scene: Scene) -> None:
    connection = scene.connect()
    tunnel = scene.destination.shared()
    stream = scene.accepted(tunnel, connection)
    scene.sends(connection, b"a question")
    assert stream.wait_for_end() == b"a question"
    tunnel.send(OWN, stream.number)
    line = scene.destination.attached(stream)
    _go_on_in(line, stream)
    answer = some_bytes(_BIG, seed=3)
    heard = scene.reads(connection)
    assert exchange(line, answer) == b""
    scene.join()
    assert digest(heard[0]) == digest(answer)
    scene.ended(connection, "ok", _BIG, len(b"a question"))


def test_without_a_tunnel_of_its_own_a_stream_goes_on_where_it_is(scene: Scene) -> None:
    request = some_bytes(_BIG, seed=4)
    before = scene.mesh.metrics(1)
    connection = scene.connect()
    tunnel = scene.destination.shared()
    stream = scene.accepted(tunnel, connection)
    scene.destination.is_refusing = True
    tunnel.send(OWN, stream.number)
    scene.shows(_NOT_MOVED, before[_NOT_MOVED] + 1)
    scene.sends(connection, request)
    assert digest(stream.wait_for_end()) == digest(request)
    heard = scene.reads(connection)
    stream.send(request)
    stream.finish()
    scene.join()
    assert digest(heard[0]) == digest(request)
    scene.ended(connection, "ok", _BIG, _BIG)
    scene.shows(_MOVED, before[_MOVED])


@pytest.mark.parametrize("how", ["refused", "cut"])
def test_an_own_tunnel_that_is_lost_before_its_verdict_costs_nothing(scene: Scene, how: str) -> None:
    connection = scene.connect()
    tunnel = scene.destination.shared()
    stream = scene.accepted(tunnel, connection)
    tunnel.send(OWN, stream.number)
    if how == "refused":
        scene.destination.attached(stream, answer="unknown_destination")
    else:
        line = scene.destination.line()
        line.read("ATTACH")
        line.cut()
    said = some_bytes(_BIG, seed=5)
    scene.sends(connection, said)
    assert digest(stream.wait_for_end()) == digest(said)
    stream.finish()
    assert read_all(connection) == b""
    scene.ended(connection, "ok", 0, _BIG)


def test_an_own_tunnel_that_is_lost_later_ends_that_stream_only(scene: Scene) -> None:
    stays, moves = scene.connect(), scene.connect()
    tunnel = scene.destination.shared()
    other, stream = scene.accepted_all(tunnel, [stays, moves])
    tunnel.send(OWN, stream.number)
    line = scene.destination.attached(stream)
    stream.wait_until_moved()
    line.cut()
    stream.move()
    assert is_reset(moves)
    assert scene.record(moves)["close_reason"] == "tunnel_lost"
    stays.sendall(b"untouched")
    assert other.receive(9) == b"untouched"


def test_a_stream_that_ends_while_it_moves_is_over(scene: Scene) -> None:
    connection = scene.connect()
    tunnel = scene.destination.shared()
    stream = scene.accepted(tunnel, connection)
    tunnel.send(OWN, stream.number)
    line = scene.destination.attached(stream)
    stream.abort()
    assert is_reset(connection)
    assert line.is_closed_without_a_frame(), "both close it"
    assert scene.record(connection)["close_reason"] == "upstream_reset"
    again = scene.connect()
    scene.accepted(tunnel, again).send(b"and the shared one goes on")
    assert again.recv(26) == b"and the shared one goes on"
