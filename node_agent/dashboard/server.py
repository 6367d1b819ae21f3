"""The dashboard's HTTP server: files of the package, three questions, one form; nothing that changes anything.

The page may load and connect to nothing but this server, and be shown in nobody's
frame: the Content-Security-Policy says so to the browser.
"""

import json
import secrets
import time
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Final

import trio

from ca.http_server import JSON, Handler, HttpServer, Request, Response, Routes, Secure, json_response
from node_agent import __version__
from node_agent.dashboard.gate import LOGIN, Gate
from node_agent.dashboard.picture import Json, Picture
from node_agent.dashboard.source import Source

HEADERS: Final = (
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Permissions-Policy", "camera=(), geolocation=(), microphone=()"),
)
_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


async def serve(
    *,
    source: Source,
    listeners: Sequence[trio.SocketListener],
    token: str | None,
    names: Sequence[str],
    secure: Secure | None = None,
    started: Callable[[], None] = lambda: None,
) -> None:
    """Serve until cancelled; closes ``listeners``.  ``started`` is called when requests are answered."""
    gate = Gate(
        token=token,
        names=names,
        secure=secure is not None,
        now=time.monotonic,
        draw=lambda: secrets.token_urlsafe(32),
    )
    server = HttpServer(
        routes(source, gate, with_login=token is not None), secure=secure, guard=gate.judge, headers=HEADERS
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.run)
        await nursery.start(server.run, listeners)
        started()


def routes(source: Source, gate: Gate, *, with_login: bool) -> Routes:
    """What is served."""
    files = _files()
    served: dict[str, dict[str, Handler]] = {
        f"/static/{name}": {"GET": _constant(kind, content)} for name, (kind, content) in files.items()
    }
    served["/"] = {"GET": _constant(*files["index.html"])}
    served["/api/mesh"] = {"GET": _mesh(source)}
    served["/api/node"] = {"GET": _detail(source, Picture.node)}
    served["/api/edge"] = {"GET": _detail(source, Picture.edge)}
    if with_login:
        served[LOGIN] = {"GET": _constant(*files["login.html"]), "POST": gate.log_in}
    return served


def _files() -> dict[str, tuple[str, bytes]]:
    directory = resources.files("node_agent.dashboard") / "static"
    found = {}
    for each in directory.iterdir():
        suffix = each.name[each.name.rfind(".") :]
        if suffix in _TYPES:
            found[each.name] = (_TYPES[suffix], each.read_bytes())
    return found


def _constant(kind: str, content: bytes) -> Handler:
    return lambda _: Response(200, kind, content)


def _mesh(source: Source) -> Handler:
    def answer(_: Request) -> Response:
        source.looked_at()
        age_s = source.age_s
        document: Json = {
            "version": __version__,
            "error": source.error,
            "age_s": None if age_s is None else round(age_s, 1),
            "interval_s": source.interval_s,
            "mesh": None if source.picture is None else source.picture.overview(),
        }
        return Response(200, JSON, json.dumps(document).encode())

    return answer


def _detail(source: Source, look: Callable[[Picture, str], Json | None]) -> Handler:
    def answer(request: Request) -> Response:
        source.looked_at()
        found = None if source.picture is None else look(source.picture, request.query.get("id", ""))
        if found is None:
            return json_response(404, {"error": "there is nothing of that id now"})
        return Response(200, JSON, json.dumps(found).encode())

    return answer
