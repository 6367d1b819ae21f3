"""A connection in a shared tunnel, and the tunnel of its own that it is given; fakes for the sockets, virtual time."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from ca.spiffe import SpiffeId
from node_agent.errors import CloseReason, ConnectionFailure, PolicyDenied, RemoteProtocolError
from node_agent.frames import HEADER_BYTES, FrameType, Open, Verdict, encode_verdict
from node_agent.model import ObjectName, OriginalDestination, PeerAddress
from node_agent.stream_frames import SHARED_ALPN, decode_attach
from node_agent.tunnel import SharedConnection, Tunnel, TunnelClient, TunnelKey, TunnelLost, label_of
from tests.carrier_fakes import OK, FakeCarrier, FakeStream, FakeTunnel

_WEB = SpiffeId.workload("cluster.local", "default", "web")
_CART = SpiffeId.workload("cluster.local", "default", "cart")
_KEY = TunnelKey(source_uid="uid", source=_CART, endpoint_ip="10.0.0.1", expected=_WEB)
_MESSAGE = Open(
    destination=OriginalDestination("10.0.0.1", 80),
    source=PeerAddress("10.0.0.2", 40000),
    workload=ObjectName("default", "cart"),
)
_DIALLER: Any = SimpleNamespace(connect_timeout_s=None, reached=None)
_TIMEOUT_S = 5.0 + 2.0


class _OwnTunnel(FakeTunnel):
    """Answers ATTACH with the network's ``verdict``."""

    may_be_held = False
    leftover = b""

    def __init__(self, network: "_Network", label: str | None) -> None:
        super().__init__(SHARED_ALPN, datetime.now(UTC) + timedelta(hours=1))
        self._network = network
        self.label = label

    async def read_control(self, expected: FrameType) -> bytes:
        assert expected is FrameType.VERDICT
        await trio.sleep(self._network.verdict_s)
        if self._network.knows is not None:
            verdict = self._network.verdict if self.label in self._network.knows else CloseReason.UNKNOWN_DESTINATION
            assert isinstance(verdict, CloseReason)
            return encode_verdict(Verdict(reason=verdict))[HEADER_BYTES:]
        if isinstance(self._network.verdict, Exception):
            raise self._network.verdict
        return encode_verdict(Verdict(reason=self._network.verdict))[HEADER_BYTES:]

    def is_quiet(self) -> bool:
        return True


class _Network:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def never(*_: object) -> Any:
            raise AssertionError("not reached")

        self.client = TunnelClient(
            connect_timeout_s=5.0, handshake_timeout_s=10.0, verify=never, fault=never, carriers=cast(Any, self)
        )
        monkeypatch.setattr(self.client._dials, "dial", self.dial)
        self.verdict: CloseReason | Exception = CloseReason.OK
        self.verdict_s = 0.01
        self.knows: set[str | None] | None = None  # the labels of tunnels that come to the stream's worker; None: all
        self.tunnels: list[_OwnTunnel] = []
        self.carriers: list[FakeCarrier] = []
        self.answers: list[bytes | None] = []
        self.dial_failure: ConnectionFailure | None = None

    async def dial(self, _key: TunnelKey, _dialler: object, label: str | None = None) -> Tunnel:
        await trio.sleep(0.01)
        if self.dial_failure is not None:
            raise self.dial_failure
        self.tunnels.append(_OwnTunnel(self, label))
        return cast(Tunnel, self.tunnels[-1])

    def share(self, _tunnel: object, *, on_end: Callable[[], None]) -> FakeCarrier:
        self.carriers.append(FakeCarrier(on_end))
        if self.answers:
            self.carriers[-1].answer = self.answers.pop(0)
        return self.carriers[-1]

    async def open(self) -> tuple[SharedConnection, FakeStream]:
        connection = await self.client.open_shared(_KEY, _MESSAGE, _DIALLER)
        assert connection is not None
        return connection, cast(FakeStream, connection.stream)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.client.run)
            await trio.testing.wait_all_tasks_blocked()
            yield
            nursery.cancel_scope.cancel()

    def give(self, connection: SharedConnection, admit: Callable[[Tunnel], None] = lambda _: None) -> None:
        self.client.give_own(connection, _KEY, _DIALLER, admit=admit)

    def counts(self) -> tuple[int, int]:
        return self.client.idle_count, self.client.busy_count

    def moves(self) -> tuple[int, int]:
        """How many did, and could not."""
        return self.client.moved_count, self.client.unmoved_count


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> _Network:
    return _Network(monkeypatch)


async def test_a_tunnel_that_turns_out_to_be_unwanted_is_not_used_again(
    autojump_clock: trio.testing.MockClock, network: _Network
) -> None:
    _, running = await network.open()
    connection, refused = await network.open()
    assert len(network.carriers) == 1
    network.client.distrust(_KEY, connection)
    assert refused.is_cut
    await network.open()
    assert len(network.carriers) == 2
    assert not running.is_cut
    assert not network.carriers[0].is_over


async def test_a_fresh_tunnel_that_is_lost_is_told_and_a_used_one_replaced(
    autojump_clock: trio.testing.MockClock, network: _Network
) -> None:
    network.answers = [None, OK, OK]
    with pytest.raises(TunnelLost):
        await network.open()
    network.carriers[0].close()
    _, stream = await network.open()
    used = network.carriers[1]

    async def ask(_payload: bytes, _timeout_s: float) -> tuple[FakeStream, None]:
        used.close()
        return stream, None

    used.ask = ask  # type: ignore[assignment, method-assign]
    _, again = await network.open()
    assert again.carrier is network.carriers[2]
    assert network.counts() == (0, 1)


async def test_a_peer_that_breaks_the_protocol_is_not_asked_again(
    autojump_clock: trio.testing.MockClock, network: _Network
) -> None:
    await network.open()
    network.carriers[0].answer = None
    network.carriers[0].fault = "EOF that is not in order"
    with pytest.raises(RemoteProtocolError):
        await network.open()
    assert len(network.carriers) == 1


async def test_a_verdict_that_does_not_come_cuts_the_stream(
    autojump_clock: trio.testing.MockClock, network: _Network
) -> None:
    await network.open()
    network.carriers[0].delay_s = 1000.0
    began = trio.current_time()
    with pytest.raises(ConnectionFailure) as caught:
        await network.open()
    assert caught.value.reason is CloseReason.VERDICT_TIMEOUT
    assert trio.current_time() - began == pytest.approx(_TIMEOUT_S)
    assert len(network.carriers[0].streams) == 1


@pytest.mark.parametrize("reason", [CloseReason.CONNECT_REFUSED, CloseReason.POLICY_DENIED, CloseReason.DRAINED])
async def test_a_refusal_is_told_and_leaves_no_stream(
    autojump_clock: trio.testing.MockClock, network: _Network, reason: CloseReason
) -> None:
    network.answers = [encode_verdict(Verdict(reason=reason))[HEADER_BYTES:]]
    with pytest.raises(PolicyDenied if reason is CloseReason.POLICY_DENIED else ConnectionFailure) as caught:
        await network.open()
    assert caught.value.reason is reason
    assert network.client.busy_count == 0
    assert network.carriers[0].is_over is (reason is CloseReason.DRAINED)


async def test_a_wish_is_granted_with_a_tunnel_that_says_attach(
    autojump_clock: trio.testing.MockClock, network: _Network
) -> None:
    async with network.running():
        connection, stream = await network.open()
        network.give(connection)
        await trio.sleep(1)
        own = network.tunnels[1]
        assert stream.moves == [own]
        assert connection.own is cast(Tunnel, own)
        (attach,) = own.sent
        assert decode_attach(attach[4:]) == (connection.shared.token, stream.stream_id)
        assert network.counts() == (0, 2)
        assert network.moves() == (1, 0)


@pytest.mark.parametrize("trouble", ["dial", "lost", "late"])
async def test_a_wish_that_can_not_be_granted_is_asked_again(
    autojump_clock: trio.testing.MockClock, network: _Network, trouble: str
) -> None:
    async with network.running():
        connection, stream = await network.open()
        if trouble == "dial":
            network.dial_failure = ConnectionFailure(CloseReason.PEER_UNAVAILABLE, "no way")
        network.verdict = TunnelLost("it broke") if trouble == "lost" else CloseReason.OK
        network.verdict_s = 1000.0 if trouble == "late" else 0.01
        began = trio.current_time()
        network.give(connection)
        await trio.sleep(30)
        failed_after_s = _TIMEOUT_S if trouble == "late" else 0.0
        assert [at - began for at in stream.asked_again_at] == [pytest.approx(10 + failed_after_s, abs=0.1)]
        assert stream.moves == []
        assert connection.own is None
        assert all(tunnel.is_closed for tunnel in network.tunnels[1:])
        assert network.counts() == (0, 1)
        assert network.moves() == (0, 1)


@pytest.mark.parametrize("why", ["refused there", "over meanwhile", "not admitted"])
async def test_an_own_tunnel_that_is_not_used_is_not_leaked(
    autojump_clock: trio.testing.MockClock, network: _Network, why: str
) -> None:
    def refuse(_: Tunnel) -> None:
        raise ConnectionFailure(CloseReason.IDENTITY_REVOKED, "no more")

    async with network.running():
        connection, stream = await network.open()
        if why == "refused there":
            network.verdict = CloseReason.UNKNOWN_DESTINATION
        network.verdict_s = 5.0
        network.give(connection, refuse if why == "not admitted" else lambda _: None)
        await trio.sleep(1)
        if why == "over meanwhile":
            stream.forget()
        await trio.sleep(30)
        assert stream.moves == []
        assert connection.own is None
        assert network.tunnels[1].is_closed is (why != "refused there")
        if why != "over meanwhile":
            stream.forget()
        assert network.moves() == (0, 0 if why == "over meanwhile" else 1)
        assert network.client.busy_count == 0
        assert network.client.idle_count == (3 if why == "refused there" else 1)  # asked twice, with a name at last


# -- at a destination with worker processes ---------------------------------------------------


def _idle(network: _Network, *labels: str | None) -> list[_OwnTunnel]:
    made = [_OwnTunnel(network, label) for label in labels]
    for each in made:
        network.client._put(_KEY, cast(Tunnel, each))
    return made


async def test_no_tunnel_says_whose_it_is_where_that_is_not_needed(
    autojump_clock: trio.testing.MockClock, network: _Network
) -> None:
    async with network.running():
        for _ in range(3):
            connection, _ = await network.open()
            await network.client.open(_KEY, _MESSAGE, _DIALLER)
            network.give(connection)
            await trio.sleep(1)
        assert network.moves() == (3, 0)
        assert {tunnel.label for tunnel in network.tunnels} == {None}


async def test_once_a_tunnel_has_come_elsewhere_those_for_streams_say_whose_they_are_and_no_others(
    autojump_clock: trio.testing.MockClock, network: _Network
) -> None:
    async with network.running():
        first, _ = await network.open()
        label = label_of(first.shared.token)
        network.knows = {label}
        network.give(first)
        await trio.sleep(1)
        second, _ = await network.open()
        network.give(second)
        await trio.sleep(1)
        network.knows = None
        for _ in range(2):  # the first gets the one that came elsewhere
            await network.client.open(_KEY, _MESSAGE, _DIALLER)
        assert network.moves() == (2, 0)
        assert [tunnel.label for tunnel in network.tunnels] == [None, None, label, label, None]


async def test_an_idle_tunnel_that_comes_elsewhere_is_kept_and_one_with_the_label_dialled(
    autojump_clock: trio.testing.MockClock, network: _Network
) -> None:
    async with network.running():
        connection, stream = await network.open()
        network.knows = {label_of(connection.shared.token)}
        idle = _idle(network, None, "another's")
        network.give(connection)
        await trio.sleep(1)
        assert network.moves() == (1, 0)
        assert stream.moves == [network.tunnels[1]]
        assert not any(each.is_closed for each in idle)
        assert sum(len(each.sent) for each in idle) == 1, "one of them was tried, once"
        assert network.client.idle_count == 2


async def test_an_idle_tunnel_with_the_label_is_taken_before_another_is_dialled(
    autojump_clock: trio.testing.MockClock, network: _Network
) -> None:
    async with network.running():
        connection, stream = await network.open()
        label = label_of(connection.shared.token)
        network.knows = {label}
        wanted, _ = _idle(network, label, None)
        network.give(connection)
        await trio.sleep(1)
        assert stream.moves == [wanted]
        assert len(network.tunnels) == 1, "the shared one, and no other"


async def test_where_the_name_does_not_help_it_is_asked_once_and_again_later(
    autojump_clock: trio.testing.MockClock, network: _Network
) -> None:
    async with network.running():
        connection, stream = await network.open()
        network.knows = set()
        network.give(connection)
        await trio.sleep(1)
        assert [each.label for each in network.tunnels[1:]] == [None, None], "one that came elsewhere has no label"
        assert network.moves() == (0, 1)
        await trio.sleep(30)
        assert len(stream.asked_again_at) == 1
        network.knows = {label_of(connection.shared.token)}
        network.give(connection)
        await trio.sleep(1)
        assert stream.moves == [network.tunnels[3]]


@pytest.mark.parametrize("why", ["another reason", "over"])
async def test_no_tunnel_is_dialled_for_a_stream_that_can_not_have_one(
    autojump_clock: trio.testing.MockClock, network: _Network, why: str
) -> None:
    async with network.running():
        connection, stream = await network.open()
        _idle(network, None)
        network.verdict = CloseReason.IDENTITY_REVOKED if why == "another reason" else CloseReason.UNKNOWN_DESTINATION
        network.verdict_s = 5.0
        network.give(connection)
        await trio.sleep(1)
        if why == "over":
            stream.forget()
        await trio.sleep(30)
        assert len(network.tunnels) == 1
        assert stream.moves == []
