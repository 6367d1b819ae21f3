"""What is full is seen, and looking at much is done in small steps."""

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import trio.testing

from node_agent.telemetry.loop_lag import LoopLag
from node_agent.telemetry.metrics import Metrics
from node_agent.telemetry.saturation import Saturation, Sources
from tests.metrics_text import Found, parsed


@dataclass(frozen=True)
class Pair:
    held_bytes: int
    queues: tuple[int, int]

    def send_queues(self) -> tuple[int, int]:
        return self.queues


class Tunnels:
    dialling_count = 3
    waiting_count = 40


@dataclass
class Node:
    pairs: tuple[Pair, ...] = ()
    listeners: tuple[tuple[str, socket.socket], ...] = ()

    def __post_init__(self) -> None:
        self.metrics = Metrics()
        sources: Any = Sources(
            pairs=lambda: self.pairs,
            tunnels=Tunnels(),
            handshakes=range(7),
            max_handshakes=2048,
            listeners=lambda: iter(self.listeners),
        )
        Saturation(self.metrics, sources)

    def scrape(self) -> Found:
        return parsed(self.metrics)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=4) as made:
        yield made


def test_what_waits_in_relays_pools_and_handshakes_is_shown() -> None:
    found = Node(pairs=(Pair(100, (5, 6)), Pair(0, (0, 1)), Pair(1, (0, 0)))).scrape()

    assert found["ringfence_relay_held_bytes"] == {(): 101}
    assert found["ringfence_relay_blocked_connections"] == {(): 2}
    assert found["ringfence_relay_send_queue_bytes"] == {(): 12}
    assert found["ringfence_tunnels_dialling"] == {(): 3}
    assert found["ringfence_tunnel_waiters"] == {(): 40}
    assert found["ringfence_handshakes_pending"] == {(): 7}
    assert found["ringfence_handshakes_pending_max"] == {(): 2048}


def test_ten_thousand_relays_are_looked_at_in_many_steps() -> None:
    node = Node(pairs=tuple(Pair(1, (1, 0)) for _ in range(10_000)))

    assert sum(1 for _ in node.metrics.steps()) > 100
    assert node.scrape()["ringfence_relay_held_bytes"] == {(): 10_000}


def test_connections_that_nobody_accepts_are_counted_by_the_kernel(listener: socket.socket) -> None:
    gone = socket.create_server(("127.0.0.1", 0))
    gone.close()
    node = Node(listeners=(("outbound", listener), ("outbound", gone), ("tunnel", gone)))
    assert node.scrape()["ringfence_accept_queue_connections"] == {("outbound",): 0}

    with socket.create_connection(listener.getsockname()), socket.create_connection(listener.getsockname()):
        found = node.scrape()
        assert found["ringfence_accept_queue_connections"] == {("outbound",): 2}
        assert found["ringfence_accept_queue_fullest_ratio"] == {("outbound",): 0.5}


async def test_a_loop_that_comes_late_is_seen(autojump_clock: trio.testing.MockClock) -> None:
    late = [0.0, 0.02, 0.3]
    metrics = Metrics()
    all_slept = trio.Event()

    async def sleep_until(due: float) -> None:
        if not late:
            all_slept.set()
            await trio.sleep_forever()
        await trio.sleep_until(due + late.pop(0))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(LoopLag(metrics, sleep_until=sleep_until).run)
        await all_slept.wait()
        nursery.cancel_scope.cancel()
    found = parsed(metrics)["ringfence_loop_lag_seconds_bucket"]

    assert (found["0.001",], found["0.025",], found["0.25",], found["0.5",]) == (1, 2, 2, 3)
