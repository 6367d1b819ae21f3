"""A destination that does not keep to the rules of a shared tunnel: every program in it is reset, and told why."""

from collections.abc import Callable
from typing import Final

import pytest

from tests.shared_scene import Scene, is_reset
from tests.shared_stream import CREDIT, MAX_DATA, OWN, WINDOW, credit_payload, stream_frame
from tests.tunnel_peer import DATA, EOF, OPEN, RESET, VERDICT, verdict_payload

pytestmark = pytest.mark.mesh


_BROKEN: Final[dict[str, bytes]] = {
    "an OPEN": stream_frame(OPEN, 2, b"\x80"),
    "a frame of no stream": stream_frame(DATA, 77, b"x"),
    "a verdict of no stream": stream_frame(VERDICT, 77, verdict_payload()),
    "a second VERDICT": stream_frame(VERDICT, 1, verdict_payload()),
    "type 0": stream_frame(0, 1),
    "type 9": stream_frame(9, 1),
    "empty DATA": stream_frame(DATA, 1),
    "DATA over the limit": stream_frame(DATA, 1, bytes(MAX_DATA + 1)),
    "more than the credit": stream_frame(DATA, 1, bytes(MAX_DATA)) * 4000,
    "EOF with a payload": stream_frame(EOF, 1, b"x"),
    "EOF twice": stream_frame(EOF, 1) * 2,
    "OWN with a payload": stream_frame(OWN, 1, b"x"),
    "no credit": stream_frame(CREDIT, 1, credit_payload(0)),
    "too much credit": stream_frame(CREDIT, 1, credit_payload(WINDOW + 1)),
    "garbage": b"\xff" * 1000,
}


@pytest.mark.parametrize("name", _BROKEN)
def test_a_frame_that_does_not_belong_resets_every_program(scene: Scene, name: str) -> None:
    first = scene.connect()
    tunnel = scene.destination.shared()
    scene.accepted(tunnel, first)
    second = scene.connect()
    scene.accepted(tunnel, second)
    tunnel.send_raw(_BROKEN[name])
    assert is_reset(second)
    if name != "EOF twice":
        assert is_reset(first)
    for connection in (first, second):
        record = scene.record(connection)
        assert (record["close_reason"], record["response_flags"]) == ("protocol_error", "TUNNEL_FAILURE"), record


_NO_VERDICT: Final[dict[str, Callable[[int], bytes]]] = {
    "DATA": lambda number: stream_frame(DATA, number, b"early"),
    "EOF": lambda number: stream_frame(EOF, number),
    "CREDIT": lambda number: stream_frame(CREDIT, number, credit_payload(1)),
    "a VERDICT of garbage": lambda number: stream_frame(VERDICT, number, b"\xc1" * 10),
    "a giant VERDICT": lambda number: stream_frame(VERDICT, number, b"x", length=0xFFFFFF),
}


@pytest.mark.parametrize("name", _NO_VERDICT)
def test_something_else_than_a_verdict(scene: Scene, name: str) -> None:
    connection = scene.connect()
    tunnel = scene.destination.shared()
    stream = tunnel.accept()
    tunnel.send_raw(_NO_VERDICT[name](stream.number))
    assert is_reset(connection)
    assert scene.record(connection)["close_reason"] == "protocol_error"


def test_what_comes_for_a_stream_that_is_over_is_ignored(scene: Scene) -> None:
    first = scene.connect()
    tunnel = scene.destination.shared()
    over = scene.accepted(tunnel, first)
    over.abort()
    assert is_reset(first)
    for kind, payload in ((DATA, b"late"), (EOF, b""), (RESET, b""), (CREDIT, credit_payload(1)), (OWN, b"")):
        tunnel.send(kind, over.number, payload)
    second = scene.connect()
    stream = scene.accepted(tunnel, second)
    stream.send(b"good")
    assert second.recv(4) == b"good"
