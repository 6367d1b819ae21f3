"""What Prometheus gets at ``/metrics``.

The format is the scraper's choice (OpenMetrics or text, compressed or not).
What writes it is loaded when somebody asks for the first time, in a thread: see
``exposition``.
"""

import sys
from collections.abc import Callable, Iterable
from typing import Final

import trio

from ca.http_server import Prepare, Request, Response, Routes
from node_agent.telemetry.metrics import FamilyReading

PATH: Final = "/metrics"
_WRITER: Final = "node_agent.telemetry.exposition"


def metrics_routes(families: Callable[[], Iterable[FamilyReading]]) -> Routes:
    """For Prometheus."""

    def answer(request: Request) -> Response:
        from node_agent.telemetry import exposition  # noqa: PLC0415  # 3 MB, and nobody may ever scrape

        form = exposition.negotiate(request.headers.get("accept", ""))
        body = exposition.render(families(), form)
        headers: tuple[tuple[str, str], ...] = (("Vary", "Accept, Accept-Encoding"),)
        if exposition.accepts_gzip(request.headers.get("accept-encoding", "")):
            body = exposition.gzipped(body)
            headers += (("Content-Encoding", "gzip"),)
        return Response(200, form.value, body, headers)

    return {PATH: {"GET": answer}}


def metrics_preparation(prepare: Prepare | None) -> Prepare:
    """What the HTTP server awaits before it answers: the writer is loaded, then ``prepare``."""

    async def prepared(path: str) -> None:
        if path == PATH and _WRITER not in sys.modules:
            await trio.to_thread.run_sync(_load)
        if prepare is not None:
            await prepare(path)

    return prepared


def _load() -> None:
    import node_agent.telemetry.exposition  # noqa: F401, PLC0415
