"""Our own bundle, served by either profile, under clients that are silent, slow, greedy or wrong."""

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
import trio
import trio.testing
import trustme
from cryptography import x509

from ca.authority.errors import AuthorityError
from ca.authority.federation.endpoint import BundleEndpoint
from ca.authority.federation.fetching import FetchError, fetch
from ca.authority.federation.relation import EndpointUrl, Profile
from ca.authority.federation.settings import BundleEndpointSettings
from ca.bundle import parse_bundle
from ca.tls import KeyAndChain, strict_context
from tests.bundle_server import ENDPOINT_ID, THEIRS, ServedBundle, make_bundle, now, serving_bundle
from tests.certificates import START, Leaf, Signer, make_root


async def test_a_bundle_is_fetched_from_who_proves_the_spiffe_id() -> None:
    async with serving_bundle(ServedBundle(make_root(THEIRS))) as served:
        found = parse_bundle(await served.fetch(), trust_domain=THEIRS)
        assert found.x509_der == served.bundle.x509_der
        assert found.refresh_hint_s == 300.0, "the endpoint's own setting"
        served.bundle = make_bundle(served.root, make_root(THEIRS), sequence=2)
        assert len(parse_bundle(await served.fetch(), trust_domain=THEIRS).x509_der) == 2


async def test_a_renewed_certificate_is_served_to_the_next_client() -> None:
    async with serving_bundle(ServedBundle(make_root(THEIRS))) as served:
        await served.fetch()
        another = make_root(THEIRS)
        served.own = another.leaf(str(ENDPOINT_ID)).own
        with pytest.raises(FetchError, match="not to be trusted"):
            await served.fetch()
        await served.fetch(another.certificate)


_WRONG: Final[dict[str, tuple[Callable[[Signer], Leaf], str]]] = {
    "another workload of that trust domain": (lambda root: root.leaf(f"spiffe://{THEIRS}/ns/a/sa/b"), "it is spiffe"),
    "the trust domain itself": (lambda root: root.leaf(f"spiffe://{THEIRS}"), "no path"),
    "the right name of another CA": (lambda _: make_root(THEIRS).leaf(str(ENDPOINT_ID)), "not to be trusted"),
    "another trust domain": (lambda root: root.leaf("spiffe://third.example/ringfence/ca"), "bundle of"),
    "expired": (
        lambda root: root.leaf(
            str(ENDPOINT_ID), not_before=START - timedelta(hours=2), not_after=START - timedelta(minutes=5)
        ),
        "expired",
    ),
    "two IDs": (lambda root: root.leaf(str(ENDPOINT_ID), str(ENDPOINT_ID) + "2"), "2 URI names"),
    "no ID, but the right host": (
        lambda root: root.leaf(other_names=(x509.DNSName("localhost"),)),
        "0 URI names",
    ),
}


@pytest.mark.parametrize("name", _WRONG)
async def test_who_does_not_prove_the_spiffe_id_is_not_believed(name: str) -> None:
    make, says = _WRONG[name]
    root = make_root(THEIRS)
    async with serving_bundle(ServedBundle(root, make(root))) as served:
        with pytest.raises(FetchError) as caught:
            await served.fetch()
    assert says in str(caught.value)


async def test_without_a_bundle_to_judge_by_nobody_is_asked() -> None:
    relation = ServedBundle(make_root(THEIRS)).relation(url=EndpointUrl("127.0.0.1", 1, "/"))
    with pytest.raises(FetchError, match="--bundle"):
        await fetch(relation, roots=(), at=now())


async def test_an_endpoint_that_is_not_there_is_told() -> None:
    async with serving_bundle(ServedBundle(make_root(THEIRS))) as served:
        pass
    with pytest.raises(FetchError, match="refused"):
        await served.fetch()


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BundleEndpointSettings:
    """A certificate for 127.0.0.1 that this machine believes, as it would one of a public CA."""
    public = trustme.CA()
    public.cert_pem.write_to_path(tmp_path / "public.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "public.pem"))
    _issue(public, tmp_path, "127.0.0.1")
    return BundleEndpointSettings(
        host="127.0.0.1",
        port=0,
        profile=Profile.HTTPS_WEB,
        certificate_file=tmp_path / "chain.pem",
        key_file=tmp_path / "key.pem",
    )


def _issue(public: trustme.CA, directory: Path, name: str) -> None:
    made = public.issue_cert(name)
    for file, blobs in (("chain.pem", made.cert_chain_pems), ("key.pem", [made.private_key_pem])):
        temporary = directory / f".{file}"
        temporary.write_bytes(b"".join(blob.bytes() for blob in blobs))
        temporary.rename(directory / file)


_BY_WEB: Final[dict[str, Any]] = {"profile": Profile.HTTPS_WEB, "endpoint_id": None}


async def test_https_web_proves_a_host_name_to_the_machines_own_list(web: BundleEndpointSettings) -> None:
    async with serving_bundle(ServedBundle(make_root(THEIRS)), web) as served:
        found = parse_bundle(await served.fetch(**_BY_WEB), trust_domain=THEIRS)
        assert found.x509_der == served.bundle.x509_der
        with pytest.raises(FetchError, match="not to be trusted"):
            await served.fetch(**_BY_WEB, url=EndpointUrl("localhost", served.port, "/"))
        with pytest.raises(FetchError, match="not to be trusted"):
            await served.fetch()  # https_spiffe: a public CA vouches for no SPIFFE ID


async def test_https_web_believes_no_private_ca(web: BundleEndpointSettings) -> None:
    async with serving_bundle(ServedBundle(make_root(THEIRS))) as served:
        with pytest.raises(FetchError, match="not to be trusted"):
            await served.fetch(**_BY_WEB)


async def test_a_renewed_web_certificate_is_read_and_a_broken_one_leaves_the_old(web: BundleEndpointSettings) -> None:
    assert web.certificate_file is not None
    async with serving_bundle(ServedBundle(make_root(THEIRS)), web) as served:
        web.certificate_file.write_text("half a certifi")
        await served.fetch(**_BY_WEB)
        other = trustme.CA()
        _issue(other, web.certificate_file.parent, "127.0.0.1")
        with pytest.raises(FetchError, match="not to be trusted"):
            await served.fetch(**_BY_WEB)


def test_a_web_certificate_that_can_not_be_used_stops_the_start(tmp_path: Path) -> None:
    settings = BundleEndpointSettings(
        host=None, port=0, profile=Profile.HTTPS_WEB, certificate_file=tmp_path / "none", key_file=tmp_path / "none"
    )
    endpoint = BundleEndpoint(settings, bundle=make_bundle, own=_no_own)
    with pytest.raises(AuthorityError, match="certificate_file"):
        endpoint.require_usable()


def _no_own() -> KeyAndChain:
    raise AssertionError("https_web is not served with the authority's own SVID")


@asynccontextmanager
async def _client(served: ServedBundle) -> AsyncIterator[trio.SSLStream[trio.SocketStream]]:
    context = strict_context(server_side=False, roots=[served.root.certificate], alpn="http/1.1", own=None)
    stream = trio.SSLStream(await trio.open_tcp_stream("127.0.0.1", served.port), context, https_compatible=True)
    try:
        await stream.do_handshake()
        yield stream
    finally:
        await trio.aclose_forcefully(stream)


async def _answer(stream: trio.SSLStream[trio.SocketStream]) -> bytes:
    received = bytearray()
    with trio.move_on_after(30):
        while data := await stream.receive_some(65536):
            received += data
    return bytes(received)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", b"200"),
        (b"HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", b"200"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 1\r\n\r\na", b"405"),
        (b"DELETE / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", b"405"),
        (b"GET /../keys HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", b"404"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", b"431"),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", b"431"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999\r\n\r\n" + b"a" * 200_000, b"413"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
    ],
    ids=lambda value: value[:12].decode() if isinstance(value, bytes) else None,
)
async def test_whatever_is_asked_is_answered_and_the_next_is_served(request_bytes: bytes, status: bytes) -> None:
    async with serving_bundle(ServedBundle(make_root(THEIRS))) as served:
        async with _client(served) as stream:
            try:
                await stream.send_all(request_bytes)
            except trio.BrokenResourceError:
                pass  # answered before all of it was sent
            answer = await _answer(stream)
        assert answer.split(b" ")[1] == status
        assert b"application/json" in answer
        await served.fetch()


async def test_who_says_nothing_or_little_is_dropped_and_others_are_served(autojump_clock: object) -> None:
    """Without sockets, so that the clock of the test decides."""
    served = ServedBundle(make_root(THEIRS))
    endpoint = BundleEndpoint(
        BundleEndpointSettings(host=None, port=0), bundle=lambda: served.bundle, own=lambda: served.own
    )
    listener = _MemoryListener()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(endpoint.run, [listener])
        began = trio.current_time()
        silent = [listener.connect() for _ in range(200)]
        slow = listener.connect()
        await slow.send_all(b"\x16\x03\x01\x00\xff\x01")  # a hello that does not go on

        context = strict_context(server_side=False, roots=[served.root.certificate], alpn="http/1.1", own=None)
        good = trio.SSLStream(listener.connect(), context, https_compatible=True)
        await good.send_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert (await good.receive_some(100)).startswith(b"HTTP/1.1 200")
        assert trio.current_time() - began < 1, "nobody waits for those who say nothing"

        for stream in (*silent, slow):
            while await stream.receive_some(1000):
                pass
        assert trio.current_time() - began <= 11
        nursery.cancel_scope.cancel()


class _MemoryListener(trio.abc.Listener[trio.abc.HalfCloseableStream]):
    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[trio.abc.HalfCloseableStream](1000)

    async def accept(self) -> trio.abc.HalfCloseableStream:
        return await self._receive.receive()

    async def aclose(self) -> None:
        self._receive.close()

    def connect(self) -> trio.abc.HalfCloseableStream:
        ours, theirs = trio.testing.memory_stream_pair()
        self._send.send_nowait(theirs)
        return ours


async def test_no_client_certificate_is_asked_for() -> None:
    """5.2.2.3: "servers MUST NOT require client authentication"."""
    async with serving_bundle(ServedBundle(make_root(THEIRS))) as served:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        stream = trio.SSLStream(await trio.open_tcp_stream("127.0.0.1", served.port), context, https_compatible=True)
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert (await _answer(stream)).startswith(b"HTTP/1.1 200")
        await trio.aclose_forcefully(stream)
