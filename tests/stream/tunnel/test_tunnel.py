"""Between two connections: what still belongs to the one before."""

import ssl
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import cast

import pytest
import trio

from node_agent.errors import CloseReason, ConnectionFailure, RemoteProtocolError
from node_agent.frames import RESET_FRAME, FrameType, Verdict, encode_reset, encode_verdict
from node_agent.tunnel import Tunnel, TunnelLost
from node_agent.tunnel.tunnel import PeerCertificate
from tests.relay_builder import TlsPairs

_VERDICT = encode_verdict(Verdict(reason=CloseReason.OK))


@pytest.fixture
def ends() -> Iterator[tuple[Tunnel, ssl.SSLSocket]]:
    """Our end of a tunnel, and the peer's."""
    ours, theirs = TlsPairs().make()
    with closing(ours), closing(theirs):
        yield (
            Tunnel(
                ours,
                peer=cast(PeerCertificate, None),
                peer_ip="10.0.0.1",
                not_after=datetime.max.replace(tzinfo=UTC),
                fault=lambda error: ConnectionFailure(CloseReason.HANDSHAKE_FAILED, str(error)),
            ),
            theirs,
        )


def _read(tunnel: Tunnel) -> bytes:
    return trio.run(tunnel.read_control, FrameType.VERDICT)


def test_one_reset_of_the_connection_before_is_read_over(ends: tuple[Tunnel, ssl.SSLSocket]) -> None:
    tunnel, peer = ends
    tunnel.take_back(b"")
    peer.send(RESET_FRAME + _VERDICT)
    assert _read(tunnel) == _VERDICT[4:]


def test_a_second_one_is_not(ends: tuple[Tunnel, ssl.SSLSocket]) -> None:
    tunnel, peer = ends
    tunnel.take_back(RESET_FRAME)
    peer.send(RESET_FRAME + _VERDICT)
    with pytest.raises(RemoteProtocolError):
        _read(tunnel)


def test_a_reset_on_a_fresh_tunnel_is_none_of_a_connection_before(ends: tuple[Tunnel, ssl.SSLSocket]) -> None:
    tunnel, peer = ends
    peer.send(RESET_FRAME + _VERDICT)
    with pytest.raises(RemoteProtocolError):
        _read(tunnel)


@pytest.mark.parametrize("before", [b"", RESET_FRAME])
def test_an_agent_that_cuts_the_connection_before_has_ended_the_tunnel_and_broken_no_rule(
    ends: tuple[Tunnel, ssl.SSLSocket], before: bytes
) -> None:
    """Its program had not taken the last bytes yet, when it was drained: for us the connection was over."""
    tunnel, peer = ends
    tunnel.take_back(b"")
    peer.send(before + encode_reset(CloseReason.DRAINED))
    with pytest.raises(TunnelLost) as lost:
        _read(tunnel)
    assert not lost.value.within_frame
