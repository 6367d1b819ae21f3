"""How full things are: what waits in relays, pools and queues, looked at when somebody scrapes.

Nothing of this costs a connection anything.  Looking at thousands of relays is
done in steps (``Metrics.before_scrape``), so that bytes keep moving in between.
"""

import socket
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Final, Protocol

from node_agent.telemetry.metrics import Metrics

_PAIRS_A_STEP: Final = 64  # two ioctl(2) each: 0.2 ms
_QUEUES: Final = struct.Struct("24xII")
"""Of struct tcp_info (linux/tcp.h): tcpi_unacked and tcpi_sacked, which for a listening socket are how many
connections wait to be accepted, and how many may (net/ipv4/tcp.c, tcp_get_info)."""


class RelayedPair(Protocol):
    """Two joined sockets."""

    @property
    def held_bytes(self) -> int: ...

    def send_queues(self) -> tuple[int, int]: ...


class TunnelQueues(Protocol):
    """Those who want a tunnel."""

    @property
    def dialling_count(self) -> int: ...

    @property
    def waiting_count(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What is looked at.  ``listeners`` are those of the pods, by kind; one that is closed is left out."""

    pairs: Callable[[], Collection[RelayedPair]]
    tunnels: TunnelQueues
    handshakes: Sized
    max_handshakes: int
    listeners: Callable[[], Iterable[tuple[str, socket.socket]]]


class Saturation:
    """Registers the gauges, and keeps what was seen of the relays."""

    def __init__(self, metrics: Metrics, sources: Sources) -> None:
        self._sources = sources
        self._held_bytes = self._queued_bytes = self._blocked = 0
        metrics.before_scrape(self._look_at_relays)
        metrics.gauge(
            "ringfence_relay_held_bytes",
            "Bytes that were read from one side and wait until the other takes them.",
            lambda: self._held_bytes,
        )
        metrics.gauge(
            "ringfence_relay_blocked_connections",
            "Connections of which bytes are held back because one side does not take them.",
            lambda: self._blocked,
        )
        metrics.gauge(
            "ringfence_relay_send_queue_bytes",
            "Bytes in the send queues of relayed connections that the other end has not acknowledged.",
            lambda: self._queued_bytes,
        )
        metrics.gauge(
            "ringfence_tunnels_dialling", "Tunnels that are being set up.", lambda: sources.tunnels.dialling_count
        )
        metrics.gauge(
            "ringfence_tunnel_waiters",
            "Connections that wait for a tunnel because enough are being set up for them.",
            lambda: sources.tunnels.waiting_count,
        )
        metrics.gauge(
            "ringfence_handshakes_pending",
            "Connections to tunnel ports that have proved nothing yet.",
            lambda: len(sources.handshakes),
        )
        metrics.gauge(
            "ringfence_handshakes_pending_max",
            "How many of them there may be; past it the oldest is dropped.",
            lambda: sources.max_handshakes,
        )
        metrics.gauge(
            "ringfence_accept_queue_connections",
            "Connections that wait to be accepted, by kind of listener.",
            self._accept_queues,
            labels=("listener",),
            merge="max",  # worker processes accept from the same queues
        )
        metrics.gauge(
            "ringfence_accept_queue_fullest_ratio",
            "The fullest queue of a listener, of what it may hold.",
            self._fullest,
            labels=("listener",),
            merge="max",
        )

    def _look_at_relays(self) -> Iterator[None]:
        held = queued = blocked = 0
        for number, pair in enumerate(tuple(self._sources.pairs()), 1):
            held_here = pair.held_bytes
            held += held_here
            blocked += held_here > 0
            queued += sum(pair.send_queues())
            if not number % _PAIRS_A_STEP:
                yield
        self._held_bytes, self._queued_bytes, self._blocked = held, queued, blocked

    def _queues(self) -> Iterator[tuple[str, int, int]]:
        for kind, listener in self._sources.listeners():
            try:
                waiting, most = _QUEUES.unpack(listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _QUEUES.size))
            except OSError:
                continue  # its pod has just gone
            yield kind, waiting, most

    def _accept_queues(self) -> dict[tuple[str, ...], float]:
        found: dict[tuple[str, ...], float] = {}
        for kind, waiting, _most in self._queues():
            found[kind,] = found.get((kind,), 0) + waiting
        return found

    def _fullest(self) -> dict[tuple[str, ...], float]:
        found: dict[tuple[str, ...], float] = {}
        for kind, waiting, most in self._queues():
            found[kind,] = max(found.get((kind,), 0.0), waiting / max(most, 1))
        return found
