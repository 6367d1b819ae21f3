"""What the three HTTP listeners serve, built from callables that the agent provides.

    15020, TCP    metrics_routes     /metrics (scrape.py)
    15021, TCP    readiness_routes   /readyz  /livez
    unix socket   admin_routes       the ``ringfence`` command's questions, as JSON

The shapes of the answers are documented in docs/cli.md: what ``--json`` prints is
what is served here.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from ca.http_server import JSON, Handler, Request, Response, Routes, json_response
from node_agent.errors import ConfigError

Row = Mapping[str, object]
Rows = Callable[[], Iterable[Row]]

_ROWS_A_CHUNK: Final = 64  # about a millisecond of encoding between two awaits
_TEXT: Final = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminSources:
    """Where the answers come from.

    The rows may be a generator: it is asked for the next row while the former
    ones are being sent, so what it walks may change under it; give a snapshot.
    ``endpoints`` gets ``[namespace/]service`` or None for all, and raises
    ``LookupError`` with a text for people when there is no such service.
    ``ready`` returns whether, and the reasons why not; ``warnings`` what does
    not stop anything yet, and will if nobody looks.  ``set_log_level``
    gets level and module, each or both None (``LogControl``), and raises
    :class:`ConfigError`.
    """

    status: Callable[[], Row]
    workloads: Rows
    services: Rows
    endpoints: Callable[[str | None], Iterable[Row]]
    connections: Rows
    certs: Rows
    ready: Callable[[], tuple[bool, list[str]]]
    warnings: Callable[[], list[str]]
    log_levels: Callable[[], Row]
    set_log_level: Callable[[str | None, str | None], None]


def readiness_routes(sources: AdminSources) -> Routes:
    """For the kubelet: ``/livez`` says that the agent's loop turns, ``/readyz`` that it can serve."""

    def readyz(_: Request) -> Response:
        ready, reasons = sources.ready()
        return json_response(
            200 if ready else 503, {"ready": ready, "reasons": reasons, "warnings": sources.warnings()}
        )

    return {"/readyz": {"GET": readyz}, "/livez": {"GET": lambda _: Response(200, _TEXT, b"ok\n")}}


def admin_routes(sources: AdminSources) -> Routes:
    """For the operator's commands."""

    def endpoints(request: Request) -> Response:
        service = request.query.get("service")
        try:
            rows = iter(sources.endpoints(service))
            first = tuple(itertools.islice(rows, 1))  # a generator looks the service up only when it is asked
        except LookupError as error:
            text = error.args[0] if error.args else f"no service {service}"
            return json_response(404, {"error": text})
        return Response(200, JSON, json_rows(itertools.chain(first, rows)))

    def log_level(request: Request) -> Response:
        try:
            body = json.loads(request.body)
            level, module = body["level"], body.get("module")
            if not all(value is None or isinstance(value, str) for value in (level, module)):
                raise TypeError
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return json_response(400, {"error": 'the body must be JSON: {"level": "info"}, {"level": null} to reset'})
        try:
            sources.set_log_level(level, module)
        except ConfigError as error:
            return json_response(400, {"error": str(error)})
        return json_response(200, sources.log_levels())

    return {
        "/status": {"GET": lambda _: json_response(200, sources.status())},
        "/workloads": {"GET": _rows(sources.workloads)},
        "/services": {"GET": _rows(sources.services)},
        "/endpoints": {"GET": endpoints},
        "/connections": {"GET": _rows(sources.connections)},
        "/certs": {"GET": _rows(sources.certs)},
        "/log-level": {"GET": lambda _: json_response(200, sources.log_levels()), "PUT": log_level},
    }


def _rows(source: Rows) -> Handler:
    return lambda _: Response(200, JSON, json_rows(source()))


def json_rows(rows: Iterable[Row]) -> Iterator[bytes]:
    """A JSON array in chunks; what is not JSON-able (an address, an identity) is written as text."""
    encode = json.JSONEncoder(default=str).encode
    pending = ["["]
    first = True
    for row in rows:
        pending.append(encode(row) if first else ",\n" + encode(row))
        first = False
        if len(pending) >= _ROWS_A_CHUNK:
            yield "".join(pending).encode()
            pending.clear()
    pending.append("]\n")
    yield "".join(pending).encode()
