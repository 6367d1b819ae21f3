"""Who may have a connection and who may keep it: there is no moment in between."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, Final, cast

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from ca.spiffe import SpiffeId
from ca.trust import Revocation, RevocationKind, serial_hex
from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.identity.trust import TrustStore
from node_agent.proxy.live import LiveConnections
from node_agent.proxy.outbound import Outbound
from node_agent.proxy.trust_gate import TrustGate
from node_agent.telemetry.access_log import AccessLog
from node_agent.telemetry.connection_record import ConnectionRecord
from node_agent.telemetry.metrics import Metrics
from node_agent.tunnel import Tunnel, TunnelClient, TunnelKey
from tests.certificates import TRUST_DOMAIN, make_root

AT: Final = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
ROOT: Final = make_root().certificate
OWN: Final = SpiffeId.workload(TRUST_DOMAIN, "default", "own")
PEER: Final = SpiffeId.workload(TRUST_DOMAIN, "default", "peer")
OTHER: Final = SpiffeId.workload(TRUST_DOMAIN, "default", "other")


def identity(name: SpiffeId) -> Revocation:
    return Revocation(kind=RevocationKind.IDENTITY, value=str(name), at=AT, until=None, why="stolen")


def serial(number: int) -> Revocation:
    return Revocation(kind=RevocationKind.SERIAL, value=serial_hex(number), at=AT, until=None, why="stolen")


def tunnel(*, own_serial: int = 1, peer: SpiffeId = PEER, peer_serial: int = 2) -> Tunnel:
    """As far as the gate looks at it."""
    return cast(
        "Tunnel", SimpleNamespace(own_serial=own_serial, peer=SimpleNamespace(identity=peer, serial=peer_serial))
    )


class Stage:
    """A gate with live connections, and records that say how they ended."""

    def __init__(self) -> None:
        self.log = AccessLog(metrics=Metrics(), node="node-1")
        self.live = LiveConnections()
        self.trust = TrustStore(trust_domain=TRUST_DOMAIN, roots=[ROOT])
        self.gate = TrustGate(trust=self.trust, live=self.live)
        self.ended: dict[str, tuple[CloseReason | None, str]] = {}

    def revoke(self, *revocations: Revocation) -> None:
        now = self.trust.trust
        self.trust.take(replace(now, version=now.version + 1, revocations=tuple(revocations)))

    async def connection(self, name: str, stands: Sequence[Any], admitted: trio.Event | None = None) -> None:
        """The life of a connection, as the stories live it."""
        with self.log.connection("outbound") as record, self.live.track(record, name):
            try:
                if isinstance(stands[0], SpiffeId):
                    self.gate.admit(record, *stands)
                else:
                    self.gate.admit_tunnel(record, OWN, stands[0])
                if admitted is not None:
                    admitted.set()
                await trio.sleep_forever()
            finally:
                self.note(name, record)

    def note(self, name: str, record: ConnectionRecord) -> None:
        self.ended[name] = (record.close_reason, record.detail)


@pytest.mark.parametrize(
    ("stands", "revocation"),
    [
        ((OWN,), identity(OWN)),
        ((OWN, PEER), identity(PEER)),
        ((tunnel(),), identity(OWN)),
        ((tunnel(),), identity(PEER)),
        ((tunnel(own_serial=7),), serial(7)),
        ((tunnel(peer_serial=8),), serial(8)),
    ],
)
async def test_each_end_is_enough_to_cut_a_connection_and_the_others_go_on(
    stands: Sequence[Any], revocation: Revocation
) -> None:
    stage = Stage()
    async with trio.open_nursery() as nursery:
        ready = [trio.Event(), trio.Event()]
        nursery.start_soon(stage.connection, "hit", stands, ready[0])
        nursery.start_soon(stage.connection, "spared", (OTHER,), ready[1])
        for each in ready:
            await each.wait()
        stage.revoke(identity(SpiffeId.workload(TRUST_DOMAIN, "default", "somebody-else")))
        await trio.testing.wait_all_tasks_blocked()
        assert not stage.ended
        stage.revoke(revocation)
        await trio.testing.wait_all_tasks_blocked()
        assert stage.ended.keys() == {"hit"}
        reason, detail = stage.ended["hit"]
        assert reason is CloseReason.IDENTITY_REVOKED
        assert "stolen" in detail
        nursery.cancel_scope.cancel()


@given(steps=st.lists(st.sampled_from(["connect", "revoke", "undo"]), max_size=12))
def test_in_any_order_of_events_no_connection_lives_while_it_is_revoked(steps: list[str]) -> None:
    async def play() -> None:
        stage = Stage()
        opened, revoked = 0, False
        async with trio.open_nursery() as nursery:

            async def connect(name: str) -> None:
                try:
                    await stage.connection(name, (tunnel(),))
                except ConnectionFailure as failure:
                    assert failure.reason is CloseReason.IDENTITY_REVOKED

            for step in steps:
                if step == "connect":
                    nursery.start_soon(connect, str(opened))
                    opened += 1
                else:
                    revoked = step == "revoke"
                    stage.revoke(*([identity(PEER)] if revoked else []))
                if len(steps) % 2:  # half of the time everything happens before any task has run
                    await trio.testing.wait_all_tasks_blocked()
            await trio.testing.wait_all_tasks_blocked()
            if revoked:
                assert len(stage.ended) == opened
                assert not stage.live.connections
            assert len(stage.ended) + len(stage.live.connections) == opened
            nursery.cancel_scope.cancel()

    trio.run(play)


async def test_idle_tunnels_of_a_revoked_end_are_closed_and_the_others_kept() -> None:
    stage = Stage()
    closed: list[bool] = []

    class Idle:
        def end_idle(self, unwanted: Any) -> None:
            key = SimpleNamespace(source=OWN)
            closed.extend(unwanted(key, each) for each in (tunnel(), tunnel(peer=OTHER), tunnel(peer_serial=9)))

    stage.gate.guard(cast("TunnelClient", Idle()))
    stage.revoke(identity(PEER))
    assert closed == [True, False, True]


@pytest.mark.parametrize(
    ("revocation", "is_kept"), [(identity(OTHER), True), (identity(PEER), False), (serial(2), False)]
)
def test_a_tunnel_that_comes_back_later_than_the_revocation_is_not_kept(revocation: Revocation, is_kept: bool) -> None:
    """It was being settled: neither live nor idle when the trust changed."""
    stage = Stage()
    came_back: list[str] = []
    unused: Any = None
    outbound = Outbound(
        access_log=stage.log,
        live=stage.live,
        router=unused,
        admission=unused,
        connector=unused,
        tunnels=cast(
            "TunnelClient",
            SimpleNamespace(
                release=lambda _key, _tunnel: came_back.append("kept"),
                discard=lambda _tunnel: came_back.append("discarded"),
            ),
        ),
        relay=unused,
        gate=stage.gate,
        times=unused,
    )
    stage.revoke(revocation)
    settled: Any = tunnel()
    settled.take_back = lambda _leftover, sent_bytes: None
    pod: Any = SimpleNamespace(gone=trio.Event())
    outbound._take_back(pod, TunnelKey("uid", OWN, "10.0.0.1", PEER), settled, b"")
    assert came_back == ["kept" if is_kept else "discarded"]


def test_a_destination_that_is_revoked_is_refused_before_it_is_asked_anything() -> None:
    stage = Stage()
    peer: Any = SimpleNamespace(identity=PEER, serial=2)
    verify = stage.gate.dialled(lambda _tls, _at: peer)
    tls: Any = None
    assert verify(tls, AT) is peer
    stage.revoke(serial(2))
    with pytest.raises(ConnectionFailure) as caught:
        verify(tls, AT)
    assert caught.value.reason is CloseReason.IDENTITY_REVOKED
