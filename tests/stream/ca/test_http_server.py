"""The small HTTP server under clients that are slow, greedy, silent or talk garbage."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import h11
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from ca.http_server import HttpServer, Request, Response, Routes, json_response

Stream = trio.abc.HalfCloseableStream

CLOSE: Final = b"Host: a\r\nConnection: close\r\n\r\n"


class MemoryListener(trio.abc.Listener[Stream]):
    """Accepts what :meth:`connect` makes."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[Stream](1000)

    async def accept(self) -> Stream:
        return await self._receive.receive()

    async def aclose(self) -> None:
        self._receive.close()

    def connect(self) -> Stream:
        ours, theirs = trio.testing.memory_stream_pair()
        self._send.send_nowait(theirs)
        return ours


def echo(request: Request) -> Response:
    return json_response(200, {"query": dict(request.query), "body": request.body.decode()})


def broken(_: Request) -> Response:
    raise ZeroDivisionError("a bug")


def long_text(_: Request) -> Response:
    return Response(200, "text/plain", (b"%d\n" % number for number in range(1000)))


def fails_at_once(_: Request) -> Response:
    return Response(200, "text/plain", (b"%d" % (1 // number) for number in range(3)))


def fails_midway(_: Request) -> Response:
    return Response(200, "text/plain", (b"some%d" % (1 // number) for number in (1, 0)))


ROUTES: Final[Routes] = {
    "/echo": {"GET": echo, "PUT": echo},
    "/broken": {"GET": broken},
    "/long": {"GET": long_text},
    "/fails-at-once": {"GET": fails_at_once},
    "/fails-midway": {"GET": fails_midway},
}


@asynccontextmanager
async def serving() -> AsyncIterator[MemoryListener]:
    listener = MemoryListener()
    async with trio.open_nursery() as nursery:
        await nursery.start(HttpServer(ROUTES).run, [listener])
        yield listener
        nursery.cancel_scope.cancel()


async def read_all(stream: Stream) -> bytes:
    answer = bytearray()
    while data := await stream.receive_some():
        answer += data
    return bytes(answer)


async def roundtrip(listener: MemoryListener, request: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
    """Send ``request`` as it is; read one whole answer, as the strict h11 client reads it."""
    stream = listener.connect()
    await stream.send_all(request)
    client = h11.Connection(h11.CLIENT)
    client.send(
        h11.Request(method=request.split()[0] if request.split() else b"GET", target="/", headers=[("Host", "a")])
    )
    status, headers, body = 0, {}, bytearray()
    while True:
        event = client.next_event()
        if event is h11.NEED_DATA:
            client.receive_data(bytes(await stream.receive_some()))
        elif isinstance(event, h11.Response):
            status, headers = event.status_code, dict(event.headers)
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            await stream.aclose()
            return status, headers, bytes(body)
        else:
            raise AssertionError(f"unexpected {event!r}")


async def test_a_request_is_answered_and_the_connection_kept(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as listener:
        stream = listener.connect()
        await stream.send_all(b"GET /echo?a=1&a=2&b=%2F HTTP/1.1\r\nHost: a\r\n\r\n" * 2)
        await stream.send_all(b"PUT /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
        answer = await read_all(stream)

    assert answer.count(b"HTTP/1.1 200") == 3
    assert answer.count(b'{"query": {"a": "2", "b": "/"}, "body": ""}') == 2
    assert b'"body": "hi"' in answer


async def test_head_gives_the_head_only(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as listener:
        for path in (b"/echo", b"/long", b"/nowhere"):
            stream = listener.connect()
            await stream.send_all(b"HEAD " + path + b" HTTP/1.1\r\n" + CLOSE)
            answer = await read_all(stream)
            assert answer.endswith(b"\r\n\r\n")
            assert answer.count(b"\r\n\r\n") == 1


async def test_a_long_body_is_sent_in_chunks(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as listener:
        status, headers, body = await roundtrip(listener, b"GET /long HTTP/1.1\r\n" + CLOSE)
        assert headers[b"transfer-encoding"] == b"chunked"
        old = listener.connect()
        await old.send_all(b"GET /long HTTP/1.0\r\n\r\n")
        old_answer = await read_all(old)

    assert status == 200
    assert body.split() == [b"%d" % number for number in range(1000)]
    assert old_answer.endswith(body)


@pytest.mark.parametrize(
    ("request_line", "status", "text"),
    [
        (b"GET /nowhere", 404, "no such path; known are /broken, /echo"),
        (b"DELETE /echo", 405, "DELETE is not possible here; use GET, HEAD, PUT"),
        (b"GET /broken", 500, "internal error"),
        (b"GET /fails-at-once", 500, "internal error"),
        (b"GET /echo?" + b"&".join([b"a=1"] * 17), 400, "more than 16 fields"),
    ],
    ids=["404", "405", "500", "500-stream", "400"],
)
async def test_what_is_refused_says_why(
    autojump_clock: trio.testing.MockClock,
    request_line: bytes,
    status: int,
    text: str,
) -> None:
    async with serving() as listener:
        found, headers, body = await roundtrip(listener, request_line + b" HTTP/1.1\r\n" + CLOSE)

    assert found == status
    assert text in json.loads(body)["error"]
    assert headers[b"content-type"] == b"application/json"
    assert (b"allow" in headers) == (status == 405)


async def test_a_body_that_fails_midway_never_looks_complete(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as listener:
        stream = listener.connect()
        await stream.send_all(b"GET /fails-midway HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = await read_all(stream)

    assert b"some" in answer
    assert not answer.endswith(b"0\r\n\r\n")


async def test_too_long_heads_and_bodies_are_refused(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as listener:
        head = await roundtrip(listener, b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 20_000)
        known = await roundtrip(
            listener, b"PUT /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 70_000
        )
        chunks = b"8000\r\n" + b"x" * 0x8000 + b"\r\n8001\r\n" + b"x" * 0x8001 + b"\r\n"
        chunked = await roundtrip(
            listener, b"PUT /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
        )

    assert (head[0], known[0], chunked[0]) == (431, 413, 413)


async def test_expect_100_continue_is_answered(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as listener:
        stream = listener.connect()
        await stream.send_all(b"PUT /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 100 ")
        await stream.send_all(b"hi")
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("sent", [b"", b"GET /echo HT", b"PUT /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nh"])
async def test_a_client_that_stops_talking_is_cut_after_ten_seconds(
    autojump_clock: trio.testing.MockClock, sent: bytes
) -> None:
    async with serving() as listener:
        stream = listener.connect()
        await stream.send_all(sent)
        began_at = trio.current_time()
        assert await read_all(stream) == b""
        assert trio.current_time() - began_at == pytest.approx(10)


async def test_one_byte_a_second_does_not_extend_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as listener:
        stream = listener.connect()
        began_at = trio.current_time()
        try:
            for byte in b"GET /echo HTTP/1.1\r\nHost: aaaaaaaaaa\r\n\r\n":
                await stream.send_all(bytes([byte]))
                await trio.sleep(1)
        except trio.BrokenResourceError:
            pass
        assert trio.current_time() - began_at < 12


async def test_when_there_are_too_many_connections_the_oldest_is_cut_and_a_probe_is_served(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with serving() as listener:
        silent = [listener.connect() for _ in range(64)]
        await trio.testing.wait_all_tasks_blocked()

        status, _, _ = await roundtrip(listener, b"GET /echo HTTP/1.1\r\n" + CLOSE)

        assert status == 200
        assert await silent[0].receive_some() == b""
        with trio.move_on_after(1) as still_open:
            await silent[1].receive_some()
        assert still_open.cancelled_caught


@given(garbage=st.binary(max_size=300), cut=st.integers(min_value=0, max_value=300))
def test_garbage_is_answered_with_an_error_or_silence_and_the_server_lives(garbage: bytes, cut: int) -> None:
    async def scenario() -> None:
        async with serving() as listener:
            stream = listener.connect()
            await stream.send_all(garbage[:cut])
            await stream.send_all(garbage[cut:])
            await stream.send_eof()
            answer = await read_all(stream)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
            status, _, _ = await roundtrip(listener, b"GET /echo HTTP/1.1\r\n" + CLOSE)
            assert status == 200

    trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))
