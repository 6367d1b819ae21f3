"""The destination's end, when a tunnel may be another process's: it is asked before the handshake, and by name only."""

import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
import trio
import trio.testing

from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.identity.handshake import handshake_failure
from node_agent.tunnel import PendingHandshakes, TunnelServer, label_of
from node_agent.tunnel.label import server_name
from tests.certificates import make_root
from tests.handshakes import context

_LABEL: Final = label_of(bytes(16))
_TIMEOUT_S: Final = 10.0


class _Ends:
    """A connection of a peer, and the server that accepts it."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.client = socket.create_connection(listener.getsockname(), 30)
            self.connection, _ = listener.accept()
        self.connection.setblocking(False)
        self.pending = PendingHandshakes(4)
        self.asked: list[str] = []
        self.is_taken = False

        def never(*_: object) -> Any:
            raise AssertionError("nobody proves anything here")

        self.server = TunnelServer(
            handshake_timeout_s=_TIMEOUT_S,
            open_timeout_s=10.0,
            pending=self.pending,
            verify=never,
            fault=handshake_failure,
        )

    async def accept(self, *, waited_s: float = 0.0, looks: bool = True) -> object:
        return await self.server.accept(
            self.connection, "10.0.0.2", _context, waited_s=waited_s, pass_on=self.pass_on if looks else None
        )

    def pass_on(self, label: str) -> bool:
        self.asked.append(label)
        if self.is_taken:
            self.client_of_it = socket.socket(fileno=self.connection.detach())
        return self.is_taken

    def close(self) -> None:
        self.client.close()
        self.connection.close()
        if self.is_taken and self.asked:
            self.client_of_it.close()


async def _context() -> tuple[ssl.SSLContext, datetime]:
    root = make_root()
    leaf = root.leaf("spiffe://cluster.local/ns/default/sa/web")
    return context(leaf.own, root.certificate, server_side=True), datetime.now(UTC) + timedelta(hours=1)


@pytest.fixture
def ends() -> Iterator[_Ends]:
    made = _Ends()
    yield made
    made.close()


def _hello(name: str | None) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    made = context(None, make_root().certificate, server_side=False)
    with pytest.raises(ssl.SSLWantReadError):
        made.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


async def test_what_names_a_label_may_be_taken_over_with_every_byte_unread(ends: _Ends) -> None:
    hello = _hello(server_name(_LABEL))
    ends.client.sendall(hello)
    ends.is_taken = True
    assert await ends.accept() is None
    assert ends.asked == [_LABEL]
    assert len(ends.pending) == 0
    assert ends.client_of_it.recv(len(hello) + 1) == hello


@pytest.mark.parametrize("name", [server_name(_LABEL), "example.org", None])
async def test_what_is_not_taken_over_goes_on_with_its_handshake(ends: _Ends, name: str | None) -> None:
    ends.client.sendall(_hello(name))
    ends.client.settimeout(30)
    ends.client.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionFailure):
        await ends.accept()
    assert ends.asked == ([_LABEL] if name == server_name(_LABEL) else [])
    assert ends.client.recv(1) == b"\x16", "the handshake has begun"


async def test_one_process_does_not_look(ends: _Ends) -> None:
    ends.client.sendall(_hello(server_name(_LABEL)))
    ends.client.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionFailure):
        await ends.accept(looks=False)
    assert ends.asked == []


async def test_who_says_nothing_is_not_asked_about_and_who_hangs_up_is_none_of_ours(ends: _Ends) -> None:
    ends.client.close()
    with pytest.raises(ConnectionFailure) as caught:
        await ends.accept()
    assert caught.value.reason is CloseReason.HANDSHAKE_FAILED
    assert ends.asked == []


@pytest.mark.parametrize(("waited_s", "left_s"), [(0.0, _TIMEOUT_S), (7.0, 3.0), (60.0, 0.0)])
async def test_the_deadline_counts_from_when_it_was_accepted_by_whoever(
    autojump_clock: trio.testing.MockClock, ends: _Ends, waited_s: float, left_s: float
) -> None:
    began = trio.current_time()
    with pytest.raises(ConnectionFailure) as caught:
        await ends.accept(waited_s=waited_s)
    assert caught.value.reason is CloseReason.HANDSHAKE_TIMEOUT
    assert trio.current_time() - began == pytest.approx(left_s)
    assert ends.connection.fileno() == -1
