"""A peer that does not keep to the rules of a shared tunnel loses all of it, and its programs see a reset."""

from collections.abc import Callable
from typing import Final
from unittest.mock import ANY

import msgpack
import pytest

from tests.mesh_builder import wait_for
from tests.mesh_stage import CANARY
from tests.shared_ground import STOPS, SharedGround
from tests.shared_peer import SharedTunnel, exchange
from tests.shared_stream import (
    CREDIT,
    MAX_DATA,
    MOVED,
    OWN,
    SHARE,
    WINDOW,
    credit_payload,
    stream_frame,
)
from tests.tunnel_peer import DATA, EOF, OPEN, VERDICT, frame, open_payload, verdict_payload

pytestmark = pytest.mark.mesh

_NEVER_OPENED: Final = 99
_REST: Final = bytes(4)
"""What a frame with the short header lacks: its first bytes count as the stream's number."""


def _open(ground: SharedGround, number: int) -> bytes:
    return stream_frame(OPEN, number, open_payload(**ground.addresses(number)))


# Streams 1 and 2 run.
_BROKEN: Final[dict[str, Callable[[SharedGround], bytes]]] = {
    "DATA for a stream never opened": lambda _: stream_frame(DATA, _NEVER_OPENED, CANARY),
    "EOF for a stream never opened": lambda _: stream_frame(EOF, _NEVER_OPENED),
    "MOVED for a stream never opened": lambda _: stream_frame(MOVED, _NEVER_OPENED),
    "CREDIT for a stream never opened": lambda _: stream_frame(CREDIT, _NEVER_OPENED, credit_payload(1)),
    "type 0": lambda _: stream_frame(0, 1),
    "type 9": lambda _: stream_frame(9, 1, b"x"),
    "type 255": lambda _: stream_frame(255, 1, b"x"),
    "a second SHARE": lambda _: frame(SHARE, b"\0\0\0\1" + bytes(12)) + _REST,
    "an OPEN of an own tunnel": lambda ground: frame(OPEN, open_payload(**ground.addresses(3))) + _REST,
    "VERDICT from the source": lambda _: stream_frame(VERDICT, 1, verdict_payload()),
    "OWN from the source": lambda _: stream_frame(OWN, 1),
    "a number again": lambda ground: _open(ground, 2),
    "a falling number": lambda ground: _open(ground, 1),
    "number 0": lambda ground: _open(ground, 0),
    "an OPEN over the limit": lambda _: stream_frame(OPEN, 3, bytes(16 * 1024 + 1)),
    "an OPEN of garbage": lambda _: stream_frame(OPEN, 3, b"\xc1" * 64),
    "an OPEN that is a list": lambda _: stream_frame(OPEN, 3, msgpack.packb([1, 2, 3])),
    "an empty OPEN": lambda _: stream_frame(OPEN, 3),
    "no destination": lambda ground: stream_frame(OPEN, 3, open_payload(**ground.addresses(3), dst=None)),
    "a health check": lambda ground: stream_frame(OPEN, 3, open_payload(**ground.addresses(3), check=["tcp", 1000])),
    "empty DATA": lambda _: stream_frame(DATA, 1),
    "DATA over the limit": lambda _: stream_frame(DATA, 1, bytes(MAX_DATA + 1)),
    "giant DATA": lambda _: stream_frame(DATA, 1, CANARY, length=0xFFFFFF),
    "EOF with a payload": lambda _: stream_frame(EOF, 1, b"x"),
    "MOVED with a payload": lambda _: stream_frame(MOVED, 1, b"x"),
    "EOF twice": lambda _: stream_frame(EOF, 1) * 2,
    "DATA behind EOF": lambda _: stream_frame(EOF, 1) + stream_frame(DATA, 1, CANARY),
    "DATA behind MOVED": lambda _: stream_frame(MOVED, 1) + stream_frame(DATA, 1, CANARY),
    "MOVED twice": lambda _: stream_frame(MOVED, 1) * 2,
    "no credit": lambda _: stream_frame(CREDIT, 1, credit_payload(0)),
    "too much credit": lambda _: stream_frame(CREDIT, 1, credit_payload(WINDOW + 1)),
    "CREDIT of three bytes": lambda _: stream_frame(CREDIT, 1, b"\0\0\1"),
    "an HTTP request": lambda _: b"GET / HTTP/1.1\r\n\r\n",
}


def _read_to_the_end(tunnel: SharedTunnel) -> None:
    """Whatever comes yet: it may have been under way."""
    while tunnel.line.read() is not None:
        pass


@pytest.mark.parametrize("name", _BROKEN)
def test_a_frame_that_does_not_belong_ends_the_tunnel(ground: SharedGround, tunnel: SharedTunnel, name: str) -> None:
    streams = [ground.open(tunnel), ground.open(tunnel)]
    for stream in streams:
        ground.echo(stream, b"first")

    tunnel.send_raw(_BROKEN[name](ground))

    _read_to_the_end(tunnel)
    endings = ground.stage.application.endings
    wait_for("both programs to see the end", lambda: len(endings) == 2)
    if not name.startswith(("EOF twice", "DATA behind EOF")):
        assert endings == ["ConnectionResetError"] * 2, "a broken stream must not look whole"
    for stream in streams:
        record = ground.ended(stream, "protocol_error", "TUNNEL_FAILURE")
        assert record["sent_bytes"] == record["received_bytes"] == len(b"first")
    ground.stage.good_connection()
    assert bytes(ground.stage.application.heard) == b"first" * 2 + b"good"
    assert CANARY[:8] not in ground.stage.application.heard


def test_more_than_the_credit_ends_the_tunnel(ground: SharedGround, tunnel: SharedTunnel) -> None:
    stopped, other = ground.open(tunnel, STOPS), ground.open(tunnel)
    ground.echo(other, b"first")
    # Its program takes what the kernel keeps, a few megabytes, and we look at no CREDIT.
    for _ in range(4096):
        if tunnel.line.ending is not None:
            break
        tunnel.send_raw(stream_frame(DATA, stopped.number, bytes(MAX_DATA)))
    _read_to_the_end(tunnel)
    ground.ended(stopped, "protocol_error", "TUNNEL_FAILURE")
    ground.ended(other, "protocol_error", "TUNNEL_FAILURE")
    ground.may_read.set()
    ground.stage.good_connection()


_NO_STREAM: Final[dict[str, bytes]] = {
    "DATA": stream_frame(DATA, 1, CANARY),
    "half a frame": stream_frame(OPEN, 1, b"x" * 100)[:50],
    "a SHARE": frame(SHARE, bytes(16)) + _REST,
}


@pytest.mark.parametrize("name", _NO_STREAM)
def test_a_tunnel_without_streams_that_breaks_harms_nobody(
    ground: SharedGround, tunnel: SharedTunnel, name: str
) -> None:
    tunnel.send_raw(_NO_STREAM[name])
    if name == "half a frame":
        tunnel.close()
    else:
        assert tunnel.line.is_closed_without_a_frame()
    ground.stage.good_connection()
    assert ground.stage.application.accepted == [ground.stage.client.ipv4]
    assert CANARY[:8] not in ground.stage.application.heard


_NO_SHARE: Final[dict[str, bytes]] = {
    "a short token": frame(SHARE, bytes(15)),
    "a long token": frame(SHARE, bytes(17)),
    "no token": frame(SHARE),
}


@pytest.mark.parametrize("name", _NO_SHARE)
def test_a_share_has_a_token_of_16_bytes(ground: SharedGround, name: str) -> None:
    line = ground.dial()
    line.send_raw(_NO_SHARE[name])
    assert line.is_closed_without_a_frame()
    assert ground.stage.records(1)[0]["close_reason"] == "protocol_error"


@pytest.mark.parametrize("said", ["SHARE", "ATTACH"])
def test_version_1_knows_neither_share_nor_attach(ground: SharedGround, said: str) -> None:
    line = ground.dial(alpn=["ringfence/1"])
    assert line.protocol == "ringfence/1"
    line.send_raw(frame(SHARE, bytes(16)) if said == "SHARE" else frame(10, bytes(20)))
    assert line.is_closed_without_a_frame()
    assert ground.stage.records(1)[0]["close_reason"] == "protocol_error"


def test_a_tunnel_is_shared_from_its_first_frame_or_never(ground: SharedGround) -> None:
    line = ground.dial()
    line.send(OPEN, open_payload(**ground.addresses(1)))
    assert line.read() == (VERDICT, 0, ANY)
    assert exchange(line, b"an own tunnel's") == b"an own tunnel's"
    line.send(SHARE, bytes(16))
    assert line.is_closed_without_a_frame()
    reasons = sorted(record["close_reason"] for record in ground.stage.records(2))
    assert reasons == ["ok", "protocol_error"]
