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

_Ask = Callable[["Explanations", Mapping[str, str]], Iterator[bytes]]


def explanation_routes(build: Callable[[], "Explanations"]) -> Routes:
    """For the operator's commands; the shapes are documented in docs/cli.md."""
    built = cache(build)

    def get(needed: tuple[str, ...], ask: _Ask) -> Mapping[str, Handler]:
        def handle(request: Request) -> Response:
            missing = [name for name in needed if not request.query.get(name)]
            if missing:
                return json_response(400, {"error": f"the query must have {' and '.join(missing)}"})
            try:
                return Response(200, JSON, ask(built(), request.query))
            except UnknownPlace as unknown:
                return json_response(404, {"error": str(unknown)})

        return {"GET": handle}

    return {
        "/explain": get(
            ("source", "destination"),
            lambda parts, query: _one(parts.explainer.explain(query["source"], query["destination"])),
        ),
        "/explain/record": get(("id",), lambda parts, query: _one(iter((parts.past.explain(query["id"]),)))),
        "/policies": get((), lambda parts, query: _array(parts.policies.rows(query.get("namespace")))),
    }


def _one(steps: Iterator[Mapping[str, Any] | None]) -> Iterator[bytes]:
    """A JSON object; white space where others may have a turn."""
    for row in steps:
        yield b"\n" if row is None else json.dumps(row).encode() + b"\n"


def _array(rows: Iterator[Mapping[str, Any] | None]) -> Iterator[bytes]:
    """A JSON array in the same way."""
    before = b"["
    for row in rows:
        if row is None:
            yield b"\n"
        else:
            yield before + json.dumps(row).encode()
            before = b",\n"
    yield b"[]\n" if before == b"[" else b"]\n"
