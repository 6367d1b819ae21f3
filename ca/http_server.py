"""A small HTTP/1.1 server for machines: Prometheus, the kubelet, the ``ringfence`` command, other CAs.

h11 speaks HTTP, trio moves the bytes, one table says what is served:
``routes[path][method]`` is a function from :class:`Request` to
:class:`Response`.  A body may be an iterator of chunks, which is sent as it is
produced, so that a long answer never holds up the data path or sits in memory.

Everything that a client can make us hold is bounded: head, body, the time for
one request or one write, and connections.  When there are too many connections
the oldest is cut, not the newest refused, so that somebody who opens many and
says nothing can not keep the kubelet's probe out.

Errors: RFC 9110 status codes with a JSON body ``{"error": ...}``.
"""

import itertools
import json
import logging
import urllib.parse
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import h11
import trio

_LOG = logging.getLogger("ringfence.http")

_MAX_HEAD_BYTES: Final = 16 * 1024
_MAX_BODY_BYTES: Final = 64 * 1024
_MAX_QUERY_FIELDS: Final = 16
_MAX_CONNECTIONS: Final = 64
_DEADLINE_S: Final = 10.0  # for a whole request to arrive (idle keep-alive included), and for each write
_LINGER_S: Final = 1.0
_RECEIVE_BYTES: Final = 16 * 1024
JSON: Final = "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request, complete.

    ``query`` holds the last value of each key, ``headers`` each field by its name in lower case.
    """

    method: str
    path: str
    query: Mapping[str, str]
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class Response(NamedTuple):
    """What a handler answers; ``body`` chunks are produced while they are sent."""

    status: int
    content_type: str
    body: bytes | Iterator[bytes]
    headers: tuple[tuple[str, str], ...] = ()


Handler = Callable[[Request], Response]
Routes = Mapping[str, Mapping[str, Handler]]
Secure = Callable[[trio.abc.HalfCloseableStream], Awaitable[trio.abc.Stream]]
Prepare = Callable[[str], Awaitable[None]]
Guard = Callable[[Request], Response | None]


def json_response(status: int, value: object) -> Response:
    """``value`` as one JSON document and a line feed."""
    return Response(status, JSON, json.dumps(value).encode() + b"\n")


class _Refused(Exception):
    """The request can not be served; the answer says why and the connection ends."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class HttpServer:
    """Serves ``routes`` until it is cancelled.

    ``secure`` turns an accepted connection into the one that HTTP is spoken
    on: a TLS handshake, which the same bounds hold for.  It may raise what
    trio raises for a broken connection.

    ``prepare`` is awaited before each answer, with the request's path: it
    fetches what the handler, which can not wait, is going to show.

    ``guard`` sees each request first, also one for a path that does not exist;
    what it answers is sent instead.  ``headers`` are sent with every answer.
    """

    def __init__(
        self,
        routes: Routes,
        *,
        secure: Secure | None = None,
        prepare: Prepare | None = None,
        guard: Guard | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self._routes = routes
        self._secure = secure
        self._prepare = prepare
        self._guard = guard
        self._headers = headers
        self._connections: dict[int, trio.CancelScope] = {}  # in order of age
        self._accepted = 0

    async def run(
        self,
        listeners: Sequence[trio.abc.Listener[trio.abc.HalfCloseableStream]],
        *,
        task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve on ``listeners``, which are closed at the end."""
        await trio.serve_listeners(self._serve, list(listeners), task_status=task_status)

    def cut_all(self) -> None:
        """End every conversation; who wants to go on has to connect, and to be judged, again."""
        for scope in self._connections.values():
            scope.cancel()

    async def _serve(self, stream: trio.abc.HalfCloseableStream) -> None:
        self._accepted += 1
        number = self._accepted
        if len(self._connections) >= _MAX_CONNECTIONS:
            oldest = next(iter(self._connections))
            self._connections.pop(oldest).cancel()
        with trio.CancelScope() as scope:
            self._connections[number] = scope
            try:
                conversation: trio.abc.Stream = stream
                if self._secure is not None:
                    with trio.fail_after(_DEADLINE_S):
                        conversation = await self._secure(stream)
                await _Conversation(conversation, self._answer, self._prepare, self._headers).run()
            except (OSError, trio.BrokenResourceError, trio.TooSlowError):
                pass  # the client went away or stopped reading: nobody is left to tell
            except Exception:
                _LOG.exception("a request ended by an unexpected error")
            finally:
                self._connections.pop(number, None)

    def _answer(self, request: Request) -> Response:
        refusal = None if self._guard is None else self._guard(request)
        if refusal is not None:
            return refusal
        methods = self._routes.get(request.path)
        if methods is None:
            return json_response(404, {"error": f"no such path; known are {', '.join(sorted(self._routes))}"})
        handler = methods.get("GET" if request.method == "HEAD" else request.method)
        if handler is None:
            allowed = ", ".join(sorted({*methods, *({"HEAD"} if "GET" in methods else ())}))
            refusal = json_response(405, {"error": f"{request.method} is not possible here; use {allowed}"})
            return refusal._replace(headers=(("Allow", allowed),))
        try:
            response = handler(request)
            if isinstance(response.body, bytes):
                return response
            # The first chunk now: what fails at once can still be answered with a 500.
            first = next(response.body, b"")
            return response._replace(body=itertools.chain((first,), response.body))
        except Exception:
            _LOG.exception("%s %s failed", request.method, request.path)
            return json_response(500, {"error": "internal error; the log says more"})


class _Conversation:
    """One connection: requests and answers in turn."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        answer: Handler,
        prepare: Prepare | None,
        headers: tuple[tuple[str, str], ...],
    ) -> None:
        self._stream = stream
        self._answer = answer
        self._prepare = prepare
        self._headers = headers
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD_BYTES)

    async def run(self) -> None:
        while True:
            method = ""
            try:
                with trio.fail_after(_DEADLINE_S):
                    request = await self._read_request()
                if request is None:
                    return
                method = request.method
                if self._prepare is not None:
                    await self._prepare(request.path)
                response = self._answer(request)
                last = False
            except (_Refused, h11.RemoteProtocolError) as error:
                status = error.status if isinstance(error, _Refused) else error.error_status_hint
                response, last = json_response(status, {"error": str(error)}), True
            if not self._may_answer():
                return
            await self._send_response(response, close=last, head_only=method == "HEAD")
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                await self._linger()
                return
            self._http.start_next_cycle()

    def _may_answer(self) -> bool:
        return self._http.our_state in {h11.IDLE, h11.SEND_RESPONSE}

    async def _read_request(self) -> Request | None:
        head: h11.Request | None = None
        body = bytearray()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                if self._http.they_are_waiting_for_100_continue:
                    await self._send(h11.InformationalResponse(status_code=100, headers=[]))
                self._http.receive_data(bytes(await self._stream.receive_some(_RECEIVE_BYTES)))
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > _MAX_BODY_BYTES:
                    raise _Refused(413, f"the body is longer than {_MAX_BODY_BYTES} bytes")
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                return _parse(head, bytes(body))
            else:  # the client closed, or h11 waits for us: no further request
                return None

    async def _send_response(self, response: Response, *, close: bool, head_only: bool) -> None:
        headers = [("Content-Type", response.content_type), ("Cache-Control", "no-store"), *self._headers]
        headers += response.headers
        if isinstance(response.body, bytes):
            headers.append(("Content-Length", str(len(response.body))))
        if close:
            headers.append(("Connection", "close"))
        await self._send(h11.Response(status_code=response.status, headers=headers))
        if not head_only:
            for chunk in (response.body,) if isinstance(response.body, bytes) else response.body:
                await self._send(h11.Data(data=chunk))
        await self._send(h11.EndOfMessage())

    async def _send(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data:
            with trio.fail_after(_DEADLINE_S):
                await self._stream.send_all(data)
        else:  # a chunk that came out empty was work all the same
            await trio.lowlevel.checkpoint()

    async def _linger(self) -> None:
        """Let the client read our last answer: closing with unread input would reset the connection."""
        with trio.move_on_after(_LINGER_S):
            if isinstance(self._stream, trio.abc.HalfCloseableStream):
                await self._stream.send_eof()
            while await self._stream.receive_some(_RECEIVE_BYTES):
                pass


def _parse(head: h11.Request, body: bytes) -> Request:
    path, _, query = head.target.decode("ascii").partition("?")
    try:
        fields = urllib.parse.parse_qsl(query, keep_blank_values=True, max_num_fields=_MAX_QUERY_FIELDS)
    except ValueError as error:
        raise _Refused(400, f"the query has more than {_MAX_QUERY_FIELDS} fields") from error
    headers: dict[str, str] = {}
    for raw_name, raw_value in head.headers:
        name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value  # RFC 9110, 5.3
    return Request(method=head.method.decode("ascii"), path=path, query=dict(fields), body=body, headers=headers)
