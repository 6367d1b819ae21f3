"""``[listen] sight``: what this agent sees, for the agents of other nodes and for nobody else.

HTTP/1.1 in mutual TLS with node certificates (``peers.py``).  The bounds are
those of ``ca.http_server``: whoever can reach the port can cost us handshakes,
not memory.  A change of trust ends every conversation; the next one is judged
by what is in force then.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import trio

from ca.http_server import JSON, HttpServer, Prepare, Response, Routes
from node_agent.errors import ConnectionFailure
from node_agent.identity.trust import TrustStore
from node_agent.sight.peers import NodePeers
from node_agent.telemetry.metrics import Metrics

PATH: Final = "/sight"

_log: Final = logging.getLogger("ringfence.sight")


class SightEndpoint:
    """Serves ``document`` at :data:`PATH`."""

    def __init__(
        self,
        *,
        peers: NodePeers,
        trust: TrustStore,
        document: Callable[[], Iterator[bytes]],
        prepare: Prepare | None,
        metrics: Metrics,
    ) -> None:
        """``prepare`` is awaited with :data:`PATH` before each answer, if there is something to be fetched."""
        self._peers = peers
        self._refused = 0
        routes: Routes = {PATH: {"GET": lambda _: Response(200, JSON, document())}}
        self._server = HttpServer(routes, secure=self._secure, prepare=prepare)
        trust.on_changed.append(self._server.cut_all)
        metrics.counter(
            "ringfence_sight_refused_total",
            "Connections to the sight listener that were not another agent's.",
            lambda: self._refused,
        )

    async def run(self, listeners: Sequence[trio.abc.Listener[trio.abc.HalfCloseableStream]]) -> None:
        """Serve on ``listeners`` (closed at the end) until cancelled."""
        await self._server.run(listeners)

    async def _secure(self, stream: trio.abc.HalfCloseableStream) -> trio.abc.Stream:
        try:
            return await self._peers.accept(stream)
        except ConnectionFailure as failure:
            self._refused += 1
            _log.debug("refused who wanted to see what we see: %s", failure.detail)
            raise trio.BrokenResourceError(failure.detail) from failure
