"""``/debug/...`` on the operator's socket, and nowhere else.

    GET  /debug/stacks    tasks and threads
    GET  /debug/memory    what the kernel and the interpreter say
    PUT  /debug/profile   {"seconds": 5}: begin a profile
    GET  /debug/profile   as much of it as there is; "running" says whether it is over

Each answers {"processes": [{"process": "agent", ...}, {"process": "worker 1", ...}]}.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from ca.http_server import Request, Response, Routes, json_response
from node_agent.telemetry.debugging.process import ProcessDebugging


class OtherProcesses(Protocol):
    """The worker processes, if there are any."""

    def start_profile(self, seconds: float) -> None:
        """Begin a profile in each of them."""

    def debugging(self, path: str) -> Iterable[Mapping[str, object]]:
        """What they answered last to ``path``, each with its name as ``process``."""


def debug_routes(own: ProcessDebugging, others: OtherProcesses) -> Routes:
    """What is asked of the other processes has been fetched before (``prepare``)."""

    def answer(path: str, read: Callable[[], Mapping[str, object]]) -> Response:
        return json_response(200, {"processes": [{"process": "agent", **read()}, *others.debugging(path)]})

    def start(request: Request) -> Response:
        from node_agent.telemetry.debugging.profiler import AlreadyRunning  # noqa: PLC0415

        try:
            body = json.loads(request.body)
            seconds = body["seconds"]
            if isinstance(seconds, bool) or not isinstance(seconds, int | float):
                raise TypeError
        except (ValueError, LookupError, TypeError, RecursionError):
            return json_response(400, {"error": 'the body must be JSON: {"seconds": 5}'})
        try:
            own.start_profile(float(seconds))
        except ValueError as error:
            return json_response(400, {"error": str(error)})
        except AlreadyRunning as error:
            return json_response(409, {"error": str(error)})
        others.start_profile(float(seconds))
        return json_response(200, {"seconds": float(seconds)})

    return {
        "/debug/stacks": {"GET": lambda request: answer(request.path, own.stacks)},
        "/debug/memory": {"GET": lambda request: answer(request.path, own.memory)},
        "/debug/profile": {"GET": lambda request: answer(request.path, own.profile), "PUT": start},
    }
