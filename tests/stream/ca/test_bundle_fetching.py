"""Bundle endpoints that redirect, answer something else, or never end."""

import ssl

import pytest
import trio
import trio.testing

from ca.authority.federation.fetching import FetchError
from ca.bundle import parse_bundle, write_bundle
from ca.tls import strict_context
from tests.bundle_server import THEIRS, ServedBundle, scripted
from tests.certificates import make_root


async def test_a_redirect_is_followed_to_where_the_same_is_proved() -> None:
    served = ServedBundle(make_root(THEIRS))
    with scripted(served, {"/": (307, {"Location": "/there"}, b""), "/there": (200, {}, write_bundle(served.bundle))}):
        assert parse_bundle(await served.fetch(), trust_domain=THEIRS) == served.bundle


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("/", "more than 3 times"),
        ("http://127.0.0.1/", "somewhere that can not be"),
        ("https://user@127.0.0.1/", "somewhere that can not be"),
        ("file:///etc/passwd", "somewhere that can not be"),
        ("", "more than 3 times"),
    ],
)
async def test_a_redirect_to_nowhere_good_is_refused(location: str, says: str) -> None:
    served = ServedBundle(make_root(THEIRS))
    with scripted(served, {"/": (302, {"Location": location}, b"")}), pytest.raises(FetchError) as caught:
        await served.fetch()
    assert says in str(caught.value)


async def test_a_redirect_to_another_server_has_to_be_proved_again() -> None:
    served, impostor = ServedBundle(make_root(THEIRS)), ServedBundle(make_root(THEIRS))
    with scripted(impostor, {"/": (200, {}, write_bundle(impostor.bundle))}):
        with scripted(served, {"/": (302, {"Location": f"https://127.0.0.1:{impostor.port}/"}, b"")}):
            with pytest.raises(FetchError, match="not to be trusted"):
                await served.fetch()


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [(404, b"", "404"), (500, b"<b>oops</b>", "500"), (200, b"a" * 300_000, "more than")],
)
async def test_another_answer_than_a_document_is_told_without_quoting_it(status: int, body: bytes, says: str) -> None:
    served = ServedBundle(make_root(THEIRS))
    with scripted(served, {"/": (status, {}, body)}), pytest.raises(FetchError) as caught:
        await served.fetch()
    assert says in str(caught.value)
    assert "oops" not in str(caught.value)


async def test_a_server_that_never_ends_its_answer_is_given_up() -> None:
    served = ServedBundle(make_root(THEIRS))
    context = strict_context(server_side=True, roots=[served.root.certificate], alpn="http/1.1", own=served.own)
    context.verify_mode = ssl.CERT_NONE

    async def drip(transport: trio.SocketStream) -> None:
        stream = trio.SSLStream(transport, context, server_side=True)
        await stream.receive_some(1000)
        try:
            await stream.send_all(b"HTTP/1.1 200 OK\r\n")
            while True:
                await stream.send_all(b"X: a\r\n")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # given up

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    served.port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, drip, listeners)
        with pytest.raises(FetchError, match="HTTP/1.1"):
            await served.fetch()
        nursery.cancel_scope.cancel()
