"""Point 4, after the handshake: a peer with a good certificate that does not keep to the protocol."""

import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgpack
import pytest

from tests.mesh_builder import Mesh, wait_for
from tests.mesh_stage import CANARY, PORT, Stage, staged
from tests.tunnel_peer import (
    DATA,
    EOF,
    OPEN,
    RESET,
    VERDICT,
    Address,
    Frame,
    TunnelPeer,
    dial,
    frame,
    open_payload,
    peer_context,
    verdict_payload,
)

pytestmark = pytest.mark.mesh

_PEER: Final = "peer"


@pytest.fixture(scope="module")
def set_stage(session_mesh: Mesh) -> Iterator[Stage]:
    with staged(session_mesh) as stage:
        yield stage


@pytest.fixture
def stage(set_stage: Stage) -> Stage:
    set_stage.begin_test()
    return set_stage


@pytest.fixture
def peer(stage: Stage) -> Iterator[TunnelPeer]:
    """A tunnel from the attacker's pod, with an identity that the CA has vouched for."""
    with dial(stage.attacker, stage.server.ipv4, peer_context(stage.leaf(_PEER), stage.root)) as made:
        yield made


def _application(stage: Stage) -> Address:
    return stage.server.ipv4, PORT


def _here(stage: Stage) -> Address:
    return stage.attacker.ipv4, 40000


def _record(stage: Stage, reason: str, flags: str, *, detail: str = "") -> dict[str, Any]:
    """Assert that one record, and only one, has this reason, and that the next good client is served."""
    (first,) = stage.records(1)
    stage.good_connection()
    stage.mesh.record(2, source_workload=stage.client.workload, close_reason="ok")
    assert stage.records(1) == [first]
    assert (first["close_reason"], first["response_flags"]) == (reason, flags), first
    assert detail in first["detail"], first
    assert first["connection_security_policy"] == "mutual_tls"
    return first


# -- what an OPEN may not ask -------------------------------------------------------


def _destinations(stage: Stage) -> dict[str, tuple[Address, str, str]]:
    return {
        "another pod": ((stage.client.ipv4, PORT), "unknown_destination", "CONNECT"),
        "the node": (("10.247.2.1", PORT), "unknown_destination", "CONNECT"),
        "the loopback": (("127.0.0.1", PORT), "unknown_destination", "CONNECT"),
        "v4-mapped": ((f"::ffff:{stage.server.ipv4}", PORT), "unknown_destination", "CONNECT"),
        "a name": (("localhost", PORT), "unknown_destination", "CONNECT"),
        "the outbound listener": ((stage.server.ipv4, 15001), "destination_not_allowed", "DENY"),
        "the plaintext listener": ((stage.server.ipv4, 15006), "destination_not_allowed", "DENY"),
        "the tunnel listener": ((stage.server.ipv4, 15008), "destination_not_allowed", "DENY"),
        "a closed port": ((stage.server.ipv4, 9), "connect_refused", "CONNECT"),
    }


_DESTINATIONS: Final = (
    "another pod",
    "the node",
    "the loopback",
    "v4-mapped",
    "a name",
    "the outbound listener",
    "the plaintext listener",
    "the tunnel listener",
    "a closed port",
)


@pytest.mark.parametrize("name", _DESTINATIONS)
def test_a_destination_that_may_not_be_asked_for(stage: Stage, peer: TunnelPeer, name: str) -> None:
    destination, reason, flags = _destinations(stage)[name]
    assert peer.open(destination=destination, source=_here(stage)) == reason

    record = _record(stage, reason, flags)
    assert record["source_identity"] == "spiffe://cluster.local/ns/default/sa/peer"
    assert record["destination_workload"] == stage.server.workload
    assert stage.application.accepted == [stage.client.ipv4]


@pytest.mark.parametrize("claimed", ["10.247.1.200", "127.0.0.1", "0.0.0.0", "fd52:4647:0:1::2", "", "localhost"])
def test_a_source_address_that_is_not_its_own(stage: Stage, peer: TunnelPeer, claimed: str) -> None:
    assert peer.open(destination=_application(stage), source=(claimed, 40000)) == "source_mismatch"

    record = _record(stage, "source_mismatch", "IDENTITY_ERROR", detail=stage.attacker.ipv4)
    assert record["source_identity"] == "spiffe://cluster.local/ns/default/sa/peer"
    assert record["source_workload"] is None
    assert stage.application.accepted == [stage.client.ipv4]


def test_the_enrolled_clients_address_does_not_help(stage: Stage, peer: TunnelPeer) -> None:
    """Nor does its name: neither is proof of anything."""
    source = (stage.client.ipv4, 40000)
    assert peer.open(destination=_application(stage), source=source, name="cart") == "source_mismatch"
    record = stage.mesh.record(2, close_reason="source_mismatch")
    assert record["source_workload"] is None
    assert record["source_identity"] == "spiffe://cluster.local/ns/default/sa/peer"


def test_after_a_refusal_the_tunnel_serves_the_next_connection(stage: Stage, peer: TunnelPeer) -> None:
    assert peer.open(destination=(stage.server.ipv4, 9), source=_here(stage)) == "connect_refused"
    for _ in range(2):
        assert peer.open(destination=_application(stage), source=_here(stage)) == "ok"
        peer.send(DATA, b"hello")
        assert peer.read() == Frame(DATA, b"hello")
        peer.send(EOF)
        assert peer.read() == Frame(EOF, b"")
    reasons = [record["close_reason"] for record in stage.records(3)]
    assert reasons == ["connect_refused", "ok", "ok"]


# -- frames where an OPEN belongs ------------------------------------------------------


def _good_open(stage: Stage, **changes: Any) -> bytes:
    return frame(OPEN, open_payload(destination=_application(stage), source=_here(stage), **changes))


_NO_OPEN: Final[dict[str, Callable[[Stage], bytes]]] = {
    "DATA": lambda _: frame(DATA, CANARY),
    "EOF": lambda _: frame(EOF),
    "RESET": lambda _: frame(RESET),
    "VERDICT": lambda _: frame(VERDICT, verdict_payload()),
    "type 0": lambda _: frame(0, b"x"),
    "type 255": lambda _: frame(255, b"x"),
    "a giant OPEN": lambda _: frame(OPEN, b"x" * 64, length=0xFFFFFF),
    "an OPEN over the limit": lambda _: frame(OPEN, bytes(16 * 1024 + 1)),
    "an empty OPEN": lambda _: frame(OPEN),
    "an OPEN of garbage": lambda _: frame(OPEN, b"\xc1" * 64),
    "an OPEN that is a list": lambda _: frame(OPEN, msgpack.packb([1, 2, 3])),
    "an OPEN with a tail": lambda stage: frame(OPEN, _good_open(stage)[4:] + b"\0"),
    "an OPEN cut short": lambda stage: frame(OPEN, _good_open(stage)[4:-5]),
    "an OPEN nested deeply": lambda _: frame(OPEN, b"\x81\xa3dst" + b"\x91" * 1000 + b"\x01"),
    "an OPEN with a key twice": lambda _: frame(OPEN, b"\x82\xa3dst\x01\xa3dst\x02"),
    "an OPEN that announces 4 GiB": lambda _: frame(OPEN, b"\xdf\xff\xff\xff\xff\xa3dst"),
    "no destination": lambda stage: _good_open(stage, dst=None),
    "no source": lambda stage: _good_open(stage, src=None),
    "destination without port": lambda stage: _good_open(stage, dst=[stage.server.ipv4]),
    "port 0": lambda stage: _good_open(stage, dst=[stage.server.ipv4, 0]),
    "port 65536": lambda stage: _good_open(stage, dst=[stage.server.ipv4, 65536]),
    "a port that is true": lambda stage: _good_open(stage, dst=[stage.server.ipv4, True]),
    "a port that is text": lambda stage: _good_open(stage, dst=[stage.server.ipv4, "8080"]),
    "a port that is a float": lambda stage: _good_open(stage, dst=[stage.server.ipv4, 8080.0]),
    "an address of bytes": lambda stage: _good_open(stage, dst=[stage.server.ipv4.encode(), PORT]),
    "a long address": lambda stage: _good_open(stage, dst=["1" * 46, PORT]),
    "a long name": lambda stage: _good_open(stage, name="n" * 254),
    "a name that is a number": lambda stage: _good_open(stage, name=7),
    "a name that is no UTF-8": lambda _: frame(OPEN, b"\x81\xa4name\xa2\xff\xfe"),
}


@pytest.mark.parametrize("name", _NO_OPEN)
def test_something_else_than_an_open(stage: Stage, peer: TunnelPeer, name: str) -> None:
    peer.send_raw(_NO_OPEN[name](stage))
    assert peer.is_refused()

    _record(stage, "protocol_error", "TUNNEL_FAILURE")
    assert stage.application.accepted == [stage.client.ipv4]
    assert CANARY[:8] not in stage.application.heard


def test_an_open_with_fields_to_come_is_understood(stage: Stage, peer: TunnelPeer) -> None:
    """A later version may say more; what is missing but not needed has a default."""
    verdict = peer.open(destination=_application(stage), source=_here(stage), later={"a": [1]}, trace=None, ns=None)
    assert verdict == "ok"


# -- silence -----------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["nothing", "half a header", "half an OPEN"])
def test_a_tunnel_that_is_never_used_is_closed_in_time(stage: Stage, peer: TunnelPeer, said: str) -> None:
    whole = _good_open(stage)
    peer.send_raw({"nothing": b"", "half a header": whole[:2], "half an OPEN": whole[:20]}[said])
    assert peer.is_refused()

    record = _record(stage, "open_timeout", "TUNNEL_FAILURE")
    assert record["duration_ms"] >= 900
    assert record["source_identity"] == "spiffe://cluster.local/ns/default/sa/peer"
    assert stage.application.accepted == [stage.client.ipv4]


def test_a_tunnel_that_ends_in_the_middle_of_an_open_is_recorded(stage: Stage, peer: TunnelPeer) -> None:
    peer.send_raw(_good_open(stage)[:20])
    peer.close()
    _record(stage, "tunnel_lost", "TUNNEL_FAILURE")


def test_a_tunnel_that_ends_unused_is_no_connection(stage: Stage, peer: TunnelPeer) -> None:
    """A source that dialled and then had no use for it has not asked for anything."""
    peer.close()
    stage.good_connection()
    stage.mesh.record(2, source_workload=stage.client.workload)
    assert len(stage.mesh.records(2)) == 1


# -- a connection is open ------------------------------------------------------------------


@pytest.fixture
def opened(stage: Stage, peer: TunnelPeer) -> TunnelPeer:
    """A tunnel whose connection runs."""
    assert peer.open(destination=_application(stage), source=_here(stage)) == "ok"
    peer.send(DATA, b"first")
    assert peer.read() == Frame(DATA, b"first")
    return peer


_BROKEN: Final[dict[str, Callable[[Stage], bytes]]] = {
    "a second OPEN": _good_open,
    "a VERDICT": lambda _: frame(VERDICT, verdict_payload()),
    "type 0": lambda _: frame(0),
    "type 6": lambda _: frame(6, b"x"),
    "empty DATA": lambda _: frame(DATA),
    "giant DATA": lambda _: frame(DATA, CANARY, length=0xFFFFFF),
    "DATA over the limit": lambda _: frame(DATA, bytes(256 * 1024)),
    "EOF with a payload": lambda _: frame(EOF, b"x"),
    "EOF twice": lambda _: frame(EOF) * 2,
    "DATA after EOF": lambda _: frame(EOF) + frame(DATA, CANARY),
    "an HTTP request": lambda _: b"GET / HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("name", _BROKEN)
def test_a_frame_that_does_not_belong_ends_the_connection(stage: Stage, opened: TunnelPeer, name: str) -> None:
    try:
        opened.send_raw(_BROKEN[name](stage))
    except OSError:
        pass  # closed before it had all of it
    received = _until_the_end(opened)
    assert received in ([], [Frame(RESET, b"")], [Frame(EOF, b"")], [Frame(EOF, b""), Frame(RESET, b"")])

    wait_for("the application to see the end", lambda: stage.application.endings)
    if "EOF" not in name or name == "EOF with a payload":
        assert stage.application.endings == ["ConnectionResetError"], "a broken stream must not look whole"
    record = _record(stage, "protocol_error", "TUNNEL_FAILURE")
    assert record["received_bytes"] == record["sent_bytes"] == len(b"first")
    assert bytes(stage.application.heard) == b"first" + b"good"


def test_a_tunnel_that_breaks_is_a_reset_for_the_application(stage: Stage, opened: TunnelPeer) -> None:
    opened.tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    opened.close()
    wait_for("the application to see the end", lambda: stage.application.endings)
    assert stage.application.endings == ["ConnectionResetError"]
    _record(stage, "tunnel_lost", "TUNNEL_FAILURE")


def test_a_tunnel_that_ends_without_eof_is_a_reset_for_the_application(stage: Stage, opened: TunnelPeer) -> None:
    """Also with a proper TLS goodbye: only an EOF frame is an end."""
    opened.tls.unwrap()
    opened.close()
    wait_for("the application to see the end", lambda: stage.application.endings)
    assert stage.application.endings == ["ConnectionResetError"]
    _record(stage, "tunnel_lost", "TUNNEL_FAILURE")


@pytest.mark.parametrize("why", [b"", b"of a later version"])
def test_a_reset_frame_is_a_reset_for_the_application(stage: Stage, opened: TunnelPeer, why: bytes) -> None:
    opened.send(RESET, why)
    wait_for("the application to see the end", lambda: stage.application.endings)
    assert stage.application.endings == ["ConnectionResetError"]
    _record(stage, "downstream_reset", "RESET")


def test_after_a_reset_the_tunnel_serves_the_next_connection(stage: Stage, opened: TunnelPeer) -> None:
    opened.send(RESET)
    assert opened.read() == Frame(RESET, b""), "ours has to be answered: only then the peer knows where it is"
    assert opened.open(destination=_application(stage), source=_here(stage)) == "ok"
    opened.send(DATA, b"second")
    assert opened.read() == Frame(DATA, b"second")


def test_a_reset_that_crossed_the_end_belongs_to_the_connection_before(stage: Stage, opened: TunnelPeer) -> None:
    opened.send(EOF)
    assert opened.read() == Frame(EOF, b"")
    opened.send(RESET)
    assert opened.open(destination=_application(stage), source=_here(stage)) == "ok"


def test_two_resets_behind_the_end_are_one_too_many(stage: Stage, opened: TunnelPeer) -> None:
    opened.send(EOF)
    assert opened.read() == Frame(EOF, b"")
    opened.send_raw(frame(RESET) * 2)
    assert opened.is_refused()


def test_a_reset_with_a_reason_ends_the_tunnel_too(stage: Stage, opened: TunnelPeer) -> None:
    opened.send(RESET, b"drained")
    assert opened.is_refused()


# -- data before the verdict ------------------------------------------------------------------


def test_data_before_the_verdict_waits_for_it(stage: Stage, peer: TunnelPeer) -> None:
    peer.send_raw(_good_open(stage) + frame(DATA, b"early") + frame(EOF))
    assert peer.verdict()["reason"] == "ok"
    assert peer.read() == Frame(DATA, b"early")
    assert peer.read() == Frame(EOF, b"")
    assert stage.records(1)[0]["close_reason"] == "ok"


def test_data_before_a_refusal_reaches_nobody(stage: Stage, peer: TunnelPeer) -> None:
    refused = frame(OPEN, open_payload(destination=_application(stage), source=("10.247.1.200", 40000)))
    peer.send_raw(refused + frame(DATA, CANARY))
    assert peer.verdict()["reason"] == "source_mismatch"
    assert peer.is_refused()
    reasons = [record["close_reason"] for record in stage.records(2)]
    assert reasons == ["source_mismatch", "protocol_error"], "the connection's, and the tunnel's"
    assert stage.application.accepted == []


def _until_the_end(peer: TunnelPeer) -> list[Frame]:
    received: list[Frame] = []
    try:
        while (got := peer.read()) is not None:
            received.append(got)
    except TimeoutError:
        raise
    except OSError:
        pass
    return received
