"""Idle for an hour, by trio's clock: nothing that we run has a timer that could end a quiet connection."""

import socket

import pytest
import trio
import trio.testing

from node_agent.relay import Ending, Outcome, Relay
from tests.relay_builder import TlsPairs, data, tcp_pair

_HOUR_S = 3600.0


async def _hear(sock: socket.socket) -> bytes:
    await trio.lowlevel.wait_readable(sock)
    return sock.recv(1000)


@pytest.mark.parametrize("way", ["tunnel", "plain"])
async def test_quiet_connection_has_no_timer_and_carries_on_after_hours(
    tls_pairs: TlsPairs, autojump_clock: trio.testing.MockClock, way: str
) -> None:
    autojump_clock.autojump_threshold = float(
        "inf"
    )  # real sockets: bytes on their way are no idleness, so jump by hand
    deadline_of_the_test_s = trio.lowlevel.current_statistics().seconds_to_next_deadline
    crashes: list[BaseException] = []
    relay = Relay(on_crash=crashes.append)
    app, plain = tcp_pair()
    other, plain_other = tcp_pair()
    ours, theirs = tls_pairs.make()
    for sock in (app, plain, other, plain_other):
        sock.setblocking(False)
    outcomes: list[Outcome] = []

    async def carry() -> None:
        if way == "tunnel":
            outcomes.append(await relay.run_tunnel(plain, ours, lambda _: None, why=lambda: None))
        else:
            outcomes.append(await relay.run_plain(plain, plain_other, lambda _: None))

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(carry)
            await trio.testing.wait_all_tasks_blocked()
            assert trio.lowlevel.current_statistics().seconds_to_next_deadline == deadline_of_the_test_s

            for hour in range(3):
                autojump_clock.jump(_HOUR_S)
                await trio.testing.wait_all_tasks_blocked()
                word = b"hour %d" % hour
                app.send(word)
                if way == "plain":
                    assert await _hear(other) == word
                else:
                    await trio.lowlevel.wait_readable(theirs)
                    assert theirs.recv(1000) == data(word)
            assert autojump_clock.current_time() >= 3 * _HOUR_S
            app.close()
            if way == "plain":
                assert await _hear(other) == b""
            other.close()
            theirs.close()
        assert [each.ending for each in outcomes] == [Ending.COMPLETE if way == "plain" else Ending.TUNNEL_LOST]
        assert crashes == []
    finally:
        relay.close()
        for sock in (app, plain, other, plain_other, ours, theirs):
            sock.close()
