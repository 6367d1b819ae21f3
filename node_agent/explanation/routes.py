"""The admin socket's ``/explain``, ``/explain/record`` and ``/policies``.

What answers them is built, and imported, when somebody asks for the first time.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from ca.http_server import JSON, Handler, Request, Response, Routes, json_response
from node_agent.explanation.places import UnknownPlace

if TYPE_CHECKING:
    from node_agent.explanation.service import Explanations

_Ask = Callable[["Explanations", Mapping[str, str]], Any]


def explanation_routes(build: Callable[[], "Explanations"]) -> Routes:
    """For the operator's commands; the shapes are documented in docs/cli.md."""
    built = cache(build)

    def get(needed: tuple[str, ...], ask: _Ask) -> Mapping[str, Handler]:
        def handle(request: Request) -> Response:
            missing = [name for name in needed if not request.query.get(name)]
            if missing:
                return json_response(400, {"error": f"the query must have {' and '.join(missing)}"})
            try:
                return json_response(200, ask(built(), request.query))
            except UnknownPlace as unknown:
                return json_response(404, {"error": str(unknown)})

        return {"GET": handle}

    def policies(request: Request) -> Response:
        try:
            return Response(200, JSON, _in_steps(built().policies.rows(request.query.get("namespace"))))
        except UnknownPlace as unknown:
            return json_response(404, {"error": str(unknown)})

    return {
        "/explain": get(
            ("source", "destination"),
            lambda parts, query: parts.explainer.explain(query["source"], query["destination"]),
        ),
        "/explain/record": get(("id",), lambda parts, query: parts.past.explain(query["id"])),
        "/policies": {"GET": policies},
    }


def _in_steps(rows: Iterator[Mapping[str, Any] | None]) -> Iterator[bytes]:
    """A JSON array; white space where others may have a turn."""
    before = b"["
    for row in rows:
        if row is None:
            yield b"\n"
        else:
            yield before + json.dumps(row).encode()
            before = b",\n"
    yield b"[]\n" if before == b"[" else b"]\n"
