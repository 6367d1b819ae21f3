"""One tunnel carries connection after connection that end in every way: no byte of one is ever seen in another.

Both agents are real, from OPEN to the next OPEN, and both applications do what
they like: each byte says which connection and which direction it belongs to,
and where it stands there.
"""

import gc
import os
import random
import socket
import ssl
import struct
from contextlib import suppress
from datetime import UTC, datetime
from typing import cast

import pytest
import trio

from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.frames import (
    RESET_FRAME,
    FrameType,
    Open,
    Verdict,
    decode_open,
    decode_verdict,
    encode_open,
    encode_verdict,
)
from node_agent.model import ObjectName, OriginalDestination, PeerAddress
from node_agent.relay import Ending, Outcome, Relay
from node_agent.tunnel import Tunnel, TunnelLost
from node_agent.tunnel.tunnel import PeerCertificate
from tests.relay_builder import DEADLINE_S, TlsPairs, reset, tcp_pair

_CONNECTIONS = 250
_MOST_IN_A_TUNNEL = 50  # then one with other buffers
_BLOCK = struct.Struct(">IHH")
_ACCEPTED = encode_verdict(Verdict(reason=CloseReason.OK))


class _End:
    """One application: its bytes are numbered blocks, and it checks those that it gets."""

    def __init__(self, app: socket.socket, number: int, way: int, rng: random.Random) -> None:
        app.setblocking(False)
        self._app = app
        self._number = number
        self._way = way
        self._rng = rng
        self.sent_bytes = 0
        self.got_bytes = 0
        self.saw_end = False

    def _bytes(self, way: int, start: int, size: int) -> bytes:
        first, last = start // _BLOCK.size, (start + size) // _BLOCK.size + 1
        whole = b"".join(_BLOCK.pack(self._number, way, block % 65536) for block in range(first, last))
        return whole[start % _BLOCK.size :][:size]

    def _send(self) -> None:
        size = self._rng.choice([1, 7, 1000, 20_000, 200_000])
        most = self._rng.choice([1, 1, 1, 5])
        with suppress(BlockingIOError):
            for _ in range(most):
                self.sent_bytes += self._app.send(self._bytes(self._way, self.sent_bytes, size))

    def _receive(self) -> None:
        with suppress(BlockingIOError):
            got = self._app.recv(self._rng.choice([1, 10_000, 1_000_000]))
            assert got == self._bytes(1 - self._way, self.got_bytes, len(got)), "bytes of another connection"
            self.got_bytes += len(got)
            self.saw_end = self.saw_end or not got

    async def live(self) -> None:
        """Do something a few times, and leave: in order, or not."""
        rng = self._rng
        has_shut = False
        for _ in range(rng.randrange(6)):
            try:
                act = rng.randrange(5)
                if act < 2 and not has_shut:
                    self._send()
                elif act < 4:
                    self._receive()
                elif not has_shut and rng.random() < 0.5:
                    self._app.shutdown(socket.SHUT_WR)
                    has_shut = True
            except OSError:
                self._app.close()  # the kernel tells an error once
                return
            for _ in range(rng.randrange(3)):
                await trio.sleep(rng.choice([0, 0, 0.0005]))
        if rng.random() < 0.5:
            reset(self._app)
        elif rng.random() < 0.3:
            self._app.close()
        else:
            await self._leave_in_order(has_shut=has_shut)

    async def _leave_in_order(self, *, has_shut: bool) -> None:
        try:
            if not has_shut:
                self._app.shutdown(socket.SHUT_WR)
            while not self.saw_end:
                await trio.lowlevel.wait_readable(self._app)
                self._receive()
        except OSError:
            pass
        self._app.close()


class _Reuse:
    """Both agents' stories around one tunnel, without what they ask others."""

    def __init__(self, pairs: TlsPairs, relay: Relay, rng: random.Random) -> None:
        self._pairs = pairs
        self._relay = relay
        self._rng = rng
        self.tunnels = 0

    def _tunnels(self) -> tuple[Tunnel, Tunnel]:
        self.tunnels += 1
        one, other = self._pairs.make(buffer_bytes=self._rng.choice([None, 16 * 1024]))
        return _tunnel(one), _tunnel(other)

    async def run(self, connections: int) -> None:
        number = 0
        while number < connections:
            source, destination = self._tunnels()
            for _ in range(_MOST_IN_A_TUNNEL):
                number += 1
                if not await self._carry(number, source, destination):
                    break
            source.close()
            destination.close()

    async def _carry(self, number: int, source: Tunnel, destination: Tunnel) -> bool:
        """One connection through the tunnel; False when it can not be used again."""
        seed = self._rng.random()
        small = 16 * 1024 if self._rng.random() < 0.3 else None
        apps = [tcp_pair(buffer_bytes=small) for _ in range(2)]
        ends = [_End(app, number, way, random.Random(seed + way)) for way, (app, _) in enumerate(apps)]
        saved: list[bool] = []

        async def at_source() -> None:
            try:
                await source.send(
                    encode_open(
                        Open(
                            destination=OriginalDestination("10.0.0.1", number % 65535 + 1),
                            source=PeerAddress("10.0.0.2", 1),
                            workload=ObjectName("a", "b"),
                        )
                    )
                )
                verdict = decode_verdict(await source.read_control(FrameType.VERDICT))
            except TunnelLost:
                apps[0][1].close()
                saved.append(False)
                return
            assert verdict.reason is CloseReason.OK
            saved.append(await self._relayed(source, apps[0][1]) and source.leftover in (b"", RESET_FRAME))

        async def at_destination() -> None:
            try:
                message = decode_open(await destination.read_control(FrameType.OPEN))
                assert message.destination.port == number % 65535 + 1
                await destination.send(_ACCEPTED)
            except TunnelLost:
                apps[1][1].close()
                saved.append(False)
                return
            saved.append(await self._relayed(destination, apps[1][1]))

        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                for each in (at_source, at_destination, ends[0].live, ends[1].live):
                    nursery.start_soon(each)
        for app, plain in apps:
            app.close()
            assert plain.fileno() == -1
        for end, other in (ends, reversed(ends)):
            assert end.got_bytes <= other.sent_bytes
            assert not end.saw_end or end.got_bytes == other.sent_bytes, "a stream that is cut looked whole"
        return all(saved)

    async def _relayed(self, tunnel: Tunnel, plain: socket.socket) -> bool:
        plain.setblocking(False)
        outcome: Outcome = await self._relay.run_tunnel(plain, tunnel.lend(), lambda _: None, why=lambda: None)
        leftover: bytes | None = None
        if outcome.settlement is not None:
            leftover = await self._relay.settled(outcome.settlement)
        elif outcome.ending is Ending.COMPLETE:
            leftover = outcome.leftover
        else:
            assert outcome.ending is Ending.TUNNEL_LOST, outcome
        if leftover is None:
            return False
        tunnel.take_back(leftover)
        return True


def _tunnel(sock: ssl.SSLSocket) -> Tunnel:
    def fault(error: OSError) -> ConnectionFailure:
        return ConnectionFailure(CloseReason.HANDSHAKE_FAILED, str(error))

    return Tunnel(
        sock, peer=cast(PeerCertificate, None), peer_ip="", not_after=datetime.max.replace(tzinfo=UTC), fault=fault
    )


@pytest.mark.parametrize("seed", range(3))
def test_no_byte_of_one_connection_is_seen_in_the_next(tls_pairs: TlsPairs, seed: int) -> None:
    crashes: list[BaseException] = []

    async def main() -> _Reuse:
        relay = Relay(on_crash=crashes.append)
        reuse = _Reuse(tls_pairs, relay, random.Random(seed))
        await reuse.run(_CONNECTIONS)
        await relay.finish()
        relay.close()
        return reuse

    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    reuse = trio.run(main)
    gc.collect()
    assert crashes == []
    assert len(os.listdir("/proc/self/fd")) <= before
    assert reuse.tunnels <= 2 * _CONNECTIONS / _MOST_IN_A_TUNNEL, "hardly a tunnel was saved"
