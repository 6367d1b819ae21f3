"""What Prometheus gets at ``/metrics``.

The format is the scraper's choice (OpenMetrics or text, compressed or not).
What writes it is loaded when somebody asks for the first time, in a thread: see
``exposition``.

However many scrape at once, one part of an answer is written at a time and then
others have their turn: else sixty answers, each of them in short parts, would
keep connections waiting for sixty parts in a row.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import trio

from ca.http_server import Prepare, Request, Response, Routes
from node_agent.telemetry.metrics import FamilyReading

PATH: Final = "/metrics"
_WRITER: Final = "node_agent.telemetry.exposition"
_OTHERS_S: Final = 0.0003  # several turns of the relay when it is busy, and little beside the part before


class Pace:
    """Spaces the parts of all answers; ``now`` is monotonic seconds."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._next_at = 0.0
        self._answers = 0

    def spaced(self, parts: Iterable[bytes]) -> Iterator[bytes]:
        """The same, with empty ones in between if there are other answers and it is not this one's turn."""
        waiting = iter(parts)
        self._answers += 1
        try:
            while True:
                while self._answers > 1 and self._now() < self._next_at:
                    yield b""
                part = next(waiting, None)
                if part is None:
                    return
                self._next_at = self._now() + _OTHERS_S
                yield part
        finally:
            self._answers -= 1


def metrics_routes(families: Callable[[], Iterable[FamilyReading]]) -> Routes:
    """For Prometheus."""
    pace = Pace()

    def answer(request: Request) -> Response:
        from node_agent.telemetry import exposition  # noqa: PLC0415  # 3 MB, and nobody may ever scrape

        form = exposition.negotiate(request.headers.get("accept", ""))
        body = exposition.render(families(), form)
        headers: tuple[tuple[str, str], ...] = (("Vary", "Accept, Accept-Encoding"),)
        if exposition.accepts_gzip(request.headers.get("accept-encoding", "")):
            body = exposition.gzipped(body)
            headers += (("Content-Encoding", "gzip"),)
        return Response(200, form.value, pace.spaced(body), headers)

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
