"""The source's end under pressure: storms, cancelled connections, dead peers; fakes for the sockets, virtual time."""

import random
import socket
import ssl
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from ca.spiffe import SpiffeId
from node_agent.errors import CloseReason, ConnectionFailure, HandshakeBrokenOff
from node_agent.frames import HEADER_BYTES, Check, FrameType, Open, Verdict, decode_open, encode_verdict
from node_agent.identity.handshake import handshake_failure
from node_agent.model import ObjectName, OriginalDestination, PeerAddress
from node_agent.tunnel import Dialler, Tunnel, TunnelClient, TunnelKey, TunnelLost, connect

_CONNECT_TIMEOUT_S = 5.0
_MAX_DIALS = 32
_WEB = SpiffeId.workload("cluster.local", "default", "web")
_CART = SpiffeId.workload("cluster.local", "default", "cart")
_MESSAGE = Open(
    destination=OriginalDestination("10.0.0.1", 80),
    source=PeerAddress("10.0.0.2", 40000),
    workload=ObjectName("default", "cart"),
)


class _FakeTunnel(Tunnel):
    """Answers every OPEN after ``delay_s``; ``dead``: its peer has gone."""

    def __init__(self, network: "_Network", *, reason: CloseReason = CloseReason.OK) -> None:
        self.network = network
        self.not_after = datetime.now(UTC) + timedelta(hours=1)
        self.leftover = b""
        self.may_be_held = False
        self.reason = reason
        self.dead = False
        self.held = False
        self.users = 0
        self.knows_checks = True
        self._is_check = False
        network.open_tunnels.add(self)

    async def send(self, frame: bytes) -> None:
        self._is_check = self.knows_checks and decode_open(frame[HEADER_BYTES:]).check is not None
        self.users += 1
        assert self.users == 1, "one tunnel was handed to two"

    async def read_control(self, expected: FrameType) -> bytes:
        assert expected is FrameType.VERDICT
        await trio.sleep(self.network.delay() if not self.held else 3600.0)
        if self.dead:
            raise TunnelLost("the peer agent closed the tunnel")
        if self.reason is not CloseReason.OK or self._is_check:
            self.users -= 1
        return encode_verdict(Verdict(reason=self.reason, is_check=self._is_check))[HEADER_BYTES:]

    def is_quiet(self) -> bool:
        return not self.dead

    def abort(self) -> None:
        self.close()

    def close(self) -> None:
        self.network.open_tunnels.discard(self)


class _Network:
    """What dialling meets."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.open_tunnels: set[_FakeTunnel] = set()
        self.dials = 0
        self.dialling = 0
        self.most_dialling = 0
        self.failures: float = 0.0
        self.blackhole = False

    def delay(self) -> float:
        return self.rng.choice([0.0, 0.001, 0.01])

    async def connect(self, _key: TunnelKey, _dialler: Dialler, _label: str | None) -> Tunnel:
        self.dials += 1
        self.dialling += 1
        self.most_dialling = max(self.most_dialling, self.dialling)
        try:
            await trio.sleep(_CONNECT_TIMEOUT_S if self.blackhole else self.delay())
            if self.blackhole or self.rng.random() < self.failures:
                raise ConnectionFailure(CloseReason.PEER_UNAVAILABLE, "no way")
            return _FakeTunnel(self)
        finally:
            self.dialling -= 1


def _client(network: _Network, monkeypatch: pytest.MonkeyPatch) -> TunnelClient:
    def never(*_: object) -> Any:
        raise AssertionError("not reached")

    client = TunnelClient(connect_timeout_s=_CONNECT_TIMEOUT_S, handshake_timeout_s=10.0, verify=never, fault=never)
    monkeypatch.setattr(client._dials, "dial", network.connect)  # what it would dial
    return client


def _key(number: int = 0) -> TunnelKey:
    return TunnelKey(source_uid=f"uid-{number}", source=_CART, endpoint_ip="10.0.0.1", expected=_WEB)


_DIALLER: Any = SimpleNamespace(connect_timeout_s=None, reached=None)


async def test_storm_dials_few_tunnels_and_serves_everybody(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = _Network()
    client = _client(network, monkeypatch)
    served = 0

    async def connection() -> None:
        nonlocal served
        tunnel = await client.open(_key(), _MESSAGE, _DIALLER)
        assert isinstance(tunnel, _FakeTunnel)
        await trio.sleep(network.delay())
        served += 1
        tunnel.users -= 1
        client.release(_key(), tunnel)

    async with trio.open_nursery() as nursery:
        for _ in range(1000):
            nursery.start_soon(connection)
    assert served == 1000
    assert network.most_dialling == _MAX_DIALS
    assert network.dials < 1000, "waiters share what others give back"
    assert client.busy_count == 0
    assert client.idle_count == len(network.open_tunnels) <= 512


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_nothing_is_lost(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Cancelled while waiting, dialling or asking; refused; dead tunnels; failing dials; two keys; pods that go."""
    network = _Network(seed)
    network.failures = 0.2
    client = _client(network, monkeypatch)
    rng = random.Random(seed)
    ended = 0

    async def connection() -> None:
        nonlocal ended
        key = _key(rng.randint(0, 1))
        with trio.move_on_after(rng.choice([0.0, 0.001, 0.005, 0.02, 100.0])):
            try:
                tunnel = await client.open(key, _MESSAGE, _DIALLER)
            except ConnectionFailure as failure:
                assert failure.reason in (CloseReason.PEER_UNAVAILABLE, CloseReason.TUNNEL_LOST)
                ended += 1
                return
            assert isinstance(tunnel, _FakeTunnel)
            good = False
            try:
                await trio.sleep(network.delay())
                good = rng.random() < 0.8
            finally:
                tunnel.users -= 1
                if good:
                    tunnel.dead = rng.random() < 0.2
                    client.release(key, tunnel)
                else:
                    client.discard(tunnel)
        ended += 1

    async def trouble() -> None:
        for _ in range(20):
            await trio.sleep(0.005)
            client.forget("uid-1")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trouble)
        for _ in range(300):
            await trio.sleep(rng.choice([0.0, 0.0, 0.0, 0.001]))
            nursery.start_soon(connection)
    assert ended == 300
    assert network.most_dialling <= 2 * _MAX_DIALS
    assert client.busy_count == 0
    assert client.idle_count == len(network.open_tunnels)
    client.close()
    assert not network.open_tunnels
    assert not client._pool._slots, "a key that nobody uses is forgotten"


async def test_refusal_keeps_the_tunnel(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = _Network()
    client = _client(network, monkeypatch)
    refusing = _FakeTunnel(network, reason=CloseReason.CONNECT_REFUSED)
    client._busy += 1  # as if it had been opened by it
    client.release(_key(), refusing)
    with pytest.raises(ConnectionFailure) as caught:
        await client.open(_key(), _MESSAGE, _DIALLER)
    assert caught.value.reason is CloseReason.CONNECT_REFUSED
    assert (client.idle_count, client.busy_count, network.dials) == (1, 0, 0)


async def test_tunnels_that_died_idle_are_passed_over(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = _Network()
    client = _client(network, monkeypatch)
    for _ in range(3):
        tunnel = _FakeTunnel(network)
        tunnel.dead = True
        client._busy += 1  # as if it had been opened by it
        client.release(_key(), tunnel)
    fresh = await client.open(_key(), _MESSAGE, _DIALLER)
    assert isinstance(fresh, _FakeTunnel)
    assert not fresh.dead
    assert network.dials == 1
    assert (client.idle_count, client.busy_count, len(network.open_tunnels)) == (0, 1, 1)


async def test_storm_on_a_peer_that_does_not_answer_fails_in_time_for_everybody(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting one's turn to dial a dead peer, 32 at a time and 5 s each, would keep the last for minutes."""
    network = _Network()
    network.blackhole = True
    client = _client(network, monkeypatch)
    took_s = []

    async def connection() -> None:
        began = trio.current_time()
        with pytest.raises(ConnectionFailure) as caught:
            await client.open(_key(), _MESSAGE, _DIALLER)
        assert caught.value.reason is CloseReason.PEER_UNAVAILABLE
        took_s.append(trio.current_time() - began)

    async with trio.open_nursery() as nursery:
        for _ in range(1000):
            nursery.start_soon(connection)
    assert len(took_s) == 1000
    assert max(took_s) <= _CONNECT_TIMEOUT_S
    assert client.busy_count == 0
    assert not client._pool._slots


async def test_idle_tunnels_are_closed_in_time(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = _Network()
    client = _client(network, monkeypatch)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        tunnel = await client.open(_key(), _MESSAGE, _DIALLER)
        client.release(_key(), tunnel)
        await trio.sleep(200)
        assert client.idle_count == 1
        await trio.sleep(60)
        assert client.idle_count == 0
        assert not network.open_tunnels

        gone = _FakeTunnel(network)
        gone.dead = True
        client._busy += 1  # as if it had been opened by it
        client.release(_key(), gone)
        await trio.sleep(20)
        assert not network.open_tunnels, "its peer has gone: noticed by the next sweep"
        nursery.cancel_scope.cancel()


_CHECK_MESSAGE = _MESSAGE._replace(check=Check(tls=False, timeout_s=1.0))


@pytest.mark.parametrize("reason", [CloseReason.OK, CloseReason.CONNECT_REFUSED])
async def test_a_check_leaves_its_tunnel_to_the_next_connection(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, reason: CloseReason
) -> None:
    network = _Network()
    client = _client(network, monkeypatch)
    assert (await client.check(_key(), _CHECK_MESSAGE, _DIALLER)).reason is CloseReason.OK
    (tunnel,) = network.open_tunnels
    tunnel.reason = reason
    assert (await client.check(_key(), _CHECK_MESSAGE, _DIALLER)).reason is reason
    assert (client.idle_count, client.busy_count, network.dials) == (1, 0, 1)
    tunnel.reason = CloseReason.OK
    assert await client.open(_key(), _MESSAGE, _DIALLER) is tunnel


async def test_a_destination_that_made_a_connection_of_a_check_loses_its_tunnel(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = _Network()
    client = _client(network, monkeypatch)
    await client.check(_key(), _CHECK_MESSAGE, _DIALLER)
    (tunnel,) = network.open_tunnels
    tunnel.knows_checks = False
    assert (await client.check(_key(), _CHECK_MESSAGE, _DIALLER)).reason is CloseReason.OK
    assert not network.open_tunnels
    assert (client.idle_count, client.busy_count) == (0, 0)


async def test_tunnels_that_a_program_holds_cost_one_wait_and_no_connection(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that has ended its direction and does not read: the other side does not come to our OPEN."""
    network = _Network()
    client = _client(network, monkeypatch)
    tunnels = [await client.open(_key(), _MESSAGE, _DIALLER) for _ in range(5)]
    for tunnel in tunnels:
        assert isinstance(tunnel, _FakeTunnel)
        tunnel.users -= 1
        tunnel.held = True
        tunnel.take_back(b"", sent_bytes=100_000)
        client.release(_key(), tunnel)
    began = trio.current_time()
    served = await client.open(_key(), _MESSAGE, _DIALLER)
    assert served not in tunnels
    assert trio.current_time() - began < 1.1
    assert network.open_tunnels == {served}
    assert (client.busy_count, client.idle_count) == (1, 0)


async def test_a_slow_program_behind_a_tunnel_that_nobody_holds_is_waited_for(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = _Network()
    client = _client(network, monkeypatch)
    tunnel = await client.open(_key(), _MESSAGE, _DIALLER)
    assert isinstance(tunnel, _FakeTunnel)
    tunnel.users -= 1
    tunnel.take_back(b"", sent_bytes=1000)
    client.release(_key(), tunnel)
    monkeypatch.setattr(network, "delay", lambda: _CONNECT_TIMEOUT_S)
    assert await client.open(_key(), _MESSAGE, _DIALLER) is tunnel
    assert network.dials == 1


async def test_an_open_that_can_not_even_be_sent_is_not_waited_for_for_ever(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(_: bytes) -> None:
        await trio.sleep_forever()

    network = _Network()
    client = _client(network, monkeypatch)
    monkeypatch.setattr(_FakeTunnel, "send", lambda _, frame: full(frame))
    with pytest.raises(ConnectionFailure) as caught:
        await client.open(_key(), _MESSAGE, _DIALLER)
    assert caught.value.reason is CloseReason.VERDICT_TIMEOUT
    assert client.busy_count == 0


@pytest.mark.parametrize("moment", ["before we speak", "when we have spoken"])
async def test_a_peer_that_ends_before_it_has_accepted_us_has_broken_off(
    monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Its kernel has connected us already, and resets us with the listener: another endpoint may serve us."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setattr("node_agent.tunnel.dial.TUNNEL_PORT", port)

        async def connect_and_lose(sock: socket.socket, ip: str, port: int, *, timeout_s: float) -> None:
            await connect(sock, ip, port, timeout_s=timeout_s)
            if moment == "before we speak":
                listener.close()
                await trio.lowlevel.wait_readable(sock)  # the reset is there

        monkeypatch.setattr("node_agent.tunnel.dial.connect", connect_and_lose)
        client = TunnelClient(
            connect_timeout_s=30.0,
            handshake_timeout_s=30.0,
            verify=lambda *_: pytest.fail("nobody proved anything"),
            fault=handshake_failure,
        )
        made: list[socket.socket] = []

        def make_socket(_ip: str) -> socket.socket:
            made.append(socket.socket())
            made[0].setblocking(False)
            return made[0]

        dialler = Dialler(
            make_socket=make_socket,
            context=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            not_after=datetime.now(UTC) + timedelta(hours=1),
        )
        dialler.context.check_hostname = False
        key = _key()._replace(endpoint_ip="127.0.0.1")

        async with trio.open_nursery() as nursery:
            if moment == "when we have spoken":
                nursery.start_soon(_close_when_spoken_to, listener)
            with pytest.raises(HandshakeBrokenOff) as caught:
                await client.open(key, _MESSAGE, dialler)
        assert caught.value.reason is CloseReason.HANDSHAKE_FAILED
        assert caught.value.detail == "Connection reset by peer"
        assert made[0].fileno() == -1
        assert client.dialling_count == client.busy_count == 0


async def _close_when_spoken_to(listener: socket.socket) -> None:
    listener.setblocking(False)
    await trio.lowlevel.wait_readable(listener)
    connection, _ = listener.accept()
    await trio.lowlevel.wait_readable(connection)
    connection.close()  # what was not read makes it a reset
