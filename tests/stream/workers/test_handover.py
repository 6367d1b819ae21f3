"""A worker's part of passing tunnels on: what it takes over it serves or closes, and never more than a bound."""

import os
import socket
from collections.abc import Iterator
from typing import Any, Final, cast

import pytest
import trio
import trio.testing

from node_agent.model import PeerAddress
from node_agent.proxy.pod import Pod
from node_agent.workers import messages as say
from node_agent.workers.channel import Channel
from node_agent.workers.handover import Handover
from node_agent.workers.tunnel_messages import (
    MOST_UNDER_WAY,
    PassedOn,
    PassOn,
    SharedTunnelEnded,
    Taken,
    TakeTunnel,
    TunnelShared,
)

_PEER: Final = PeerAddress("10.0.0.2", 40000)
_POD: Final = cast(Pod, object())


class _Stage:
    """A worker's end and the parent's, and TCP connections that were accepted."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.worker = Channel(ours, receives=say.ToWorker)
        self.parent = Channel(theirs, receives=say.ToParent)
        self.handover = Handover(self.worker)
        self.clients: list[socket.socket] = []
        self.served: list[tuple[Pod, socket.socket, PeerAddress, float]] = []
        self._accepted: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))

    def accepted(self) -> socket.socket:
        client = socket.create_connection(self._listener.getsockname(), 30)
        self.clients.append(client)
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        self._accepted.append(connection)
        return connection

    def pass_on(self, connection: socket.socket) -> bool:
        return self.handover.pass_on("web", "a", connection, _PEER, 7.5)

    def take(self, connection: socket.socket, *, pod: Pod | None = _POD, is_back: bool = False) -> None:
        message = TakeTunnel(uid="web", peer=_PEER, accepted_at=7.5, is_back=is_back)
        self.handover.hear(message, [connection.detach()], pod=pod, serve=lambda *each: self.served.append(each))

    def passed_on(self) -> None:
        self.handover.hear(PassedOn(), [], pod=None, serve=_never)

    async def heard(self, count: int) -> list[Any]:
        """What the parent receives: so many messages."""
        received: list[Any] = []
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.worker.write)
                while len(received) < count:
                    received += await self.parent.receive()
                nursery.cancel_scope.cancel()
        return received

    def close(self) -> None:
        self.worker.close()
        self.parent.close()
        self._listener.close()
        for each in (*self.clients, *self._accepted, *(sock for _, sock, _, _ in self.served)):
            each.close()


def _never(*_: object) -> None:
    raise AssertionError("nothing to serve")


@pytest.fixture
def stage() -> Iterator[_Stage]:
    made = _Stage()
    yield made
    made.close()


def _is_reset(client: socket.socket) -> bool:
    try:
        client.recv(1)
    except ConnectionResetError:
        return True
    return False


async def test_the_parent_hears_what_is_shared_and_gets_the_connection_itself(stage: _Stage) -> None:
    connection = stage.accepted()
    stage.handover.began("web", "a")
    assert stage.pass_on(connection)
    assert connection.fileno() == -1, "it is nobody's here any more"
    stage.handover.ended("web", "a")
    shared, passed, ended = await stage.heard(3)
    assert shared.message == TunnelShared(uid="web", label="a")
    assert passed.message == PassOn(uid="web", label="a", peer=_PEER, accepted_at=7.5)
    assert ended.message == SharedTunnelEnded(uid="web", label="a")
    with socket.socket(fileno=passed.descriptors[0]) as there:
        there.send(b"here")
    assert stage.clients[0].recv(4) == b"here"
    assert stage.clients[0].recv(4) == b"", "no other copy of it is open"


async def test_over_the_bound_it_serves_itself_until_the_parent_answers(stage: _Stage) -> None:
    for _ in range(MOST_UNDER_WAY):
        assert stage.pass_on(stage.accepted())
    mine = stage.accepted()
    assert not stage.pass_on(mine)
    assert mine.fileno() >= 0
    stage.passed_on()
    assert stage.pass_on(mine)
    assert not stage.pass_on(stage.accepted())
    stage.take(stage.accepted(), is_back=True)
    assert stage.pass_on(stage.accepted())


async def test_what_comes_from_another_worker_is_served_as_if_accepted_and_told(stage: _Stage) -> None:
    stage.take(stage.accepted())
    ((pod, sock, peer, accepted_at),) = stage.served
    assert (pod, peer, accepted_at) == (_POD, _PEER, 7.5)
    assert sock.gettimeout() == 0.0
    assert sock.getpeername() == stage.clients[0].getsockname()
    assert [each.message for each in await stage.heard(1)] == [Taken()]


async def test_what_comes_back_is_served_and_not_told(stage: _Stage) -> None:
    assert stage.pass_on(stage.accepted())
    stage.take(stage.accepted(), is_back=True)
    assert len(stage.served) == 1
    stage.handover.began("web", "a")
    messages = [each.message for each in await stage.heard(2)]
    assert [type(each) for each in messages] == [PassOn, TunnelShared]


@pytest.mark.parametrize("is_back", [False, True])
async def test_for_a_pod_that_is_gone_it_is_reset(stage: _Stage, is_back: bool) -> None:
    stage.take(stage.accepted(), pod=None, is_back=is_back)
    assert stage.served == []
    assert _is_reset(stage.clients[0])


async def test_a_process_without_descriptors_to_spare_resets_it(stage: _Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Channel, "is_short", True)
    stage.take(stage.accepted())
    assert stage.served == []
    assert _is_reset(stage.clients[0])


async def test_what_is_given_to_a_channel_that_is_closed_is_closed(stage: _Stage) -> None:
    assert stage.pass_on(stage.accepted())  # and waits in the queue
    stage.worker.close()
    assert stage.pass_on(stage.accepted())
    for client in stage.clients:
        assert client.recv(1) == b""


async def test_a_channel_is_short_when_it_can_not_keep_its_spare_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    worker, parent = Channel(one, receives=say.ToWorker, spare_descriptors=2), Channel(other, receives=say.ToParent)
    real_open = os.open
    may_open = True

    def open_some(*arguments: Any) -> int:
        if not may_open:
            raise OSError(24, "too many")
        return real_open(*arguments)

    monkeypatch.setattr("node_agent.workers.channel.os.open", open_some)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(parent.write)
            parent.post(say.Drain())
            await worker.receive()
            seen = [worker.is_short]
            may_open = False
            parent.post(say.Drain())
            await worker.receive()
            seen.append(worker.is_short)
            assert seen == [False, True]
            nursery.cancel_scope.cancel()
    finally:
        worker.close()
        parent.close()
