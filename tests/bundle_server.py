"""A bundle endpoint for tests: the real one on a real port, or one that answers whatever a test wants."""

import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import trio
import trio.testing
from cryptography import x509

from ca.authority.federation.endpoint import BundleEndpoint
from ca.authority.federation.fetching import fetch
from ca.authority.federation.relation import EndpointUrl, Profile, Relation
from ca.authority.federation.settings import BundleEndpointSettings
from ca.spiffe import SpiffeId
from ca.tls import strict_context
from ca.trust import TrustBundle
from tests.certificates import START, Leaf, Signer, der

THEIRS: Final = "other.example"
ENDPOINT_ID: Final = SpiffeId.authority(THEIRS)


def now() -> datetime:
    return datetime.now(UTC)


def make_bundle(*roots: Signer, sequence: int = 1, trust_domain: str = THEIRS) -> TrustBundle:
    return TrustBundle(
        trust_domain=trust_domain,
        sequence=sequence,
        refresh_hint_s=1.0,
        x509_der=tuple(der(root.certificate) for root in roots),
    )


class ServedBundle:
    """A bundle endpoint on a real port, and what it serves."""

    def __init__(self, root: Signer, leaf: Leaf | None = None) -> None:
        self.root = root
        self.own = (leaf or root.intermediate().leaf(str(ENDPOINT_ID))).own
        self.bundle = make_bundle(root)
        self.port = 0

    def relation(self, **changes: Any) -> Relation:
        wanted: dict[str, Any] = {
            "trust_domain": THEIRS,
            "url": EndpointUrl("127.0.0.1", self.port, "/"),
            "profile": Profile.HTTPS_SPIFFE,
            "endpoint_id": ENDPOINT_ID,
            "added_at": START,
        }
        return Relation(**{**wanted, **changes})

    async def fetch(self, *roots: x509.Certificate, at: datetime | None = None, **changes: Any) -> bytes:
        return await fetch(self.relation(**changes), roots=roots or (self.root.certificate,), at=at or now())


@asynccontextmanager
async def serving_bundle(
    served: ServedBundle, settings: BundleEndpointSettings | None = None
) -> AsyncIterator[ServedBundle]:
    settings = settings or BundleEndpointSettings(host="127.0.0.1", port=0)
    endpoint = BundleEndpoint(settings, bundle=lambda: served.bundle, own=lambda: served.own)
    endpoint.require_usable()
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    served.port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(endpoint.run, listeners)
        yield served
        nursery.cancel_scope.cancel()


@contextmanager
def scripted(served: ServedBundle, answers: dict[str, tuple[int, dict[str, str], bytes]]) -> Iterator[ServedBundle]:
    """A server with the right certificate that answers whatever the test wants."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = answers.get(self.path, (404, {}, b""))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            pass  # the client leaves as soon as it has seen enough

    server = Server(("127.0.0.1", 0), Handler)
    context = strict_context(server_side=True, roots=[served.root.certificate], alpn="http/1.1", own=served.own)
    context.verify_mode = ssl.CERT_NONE
    server.socket = context.wrap_socket(server.socket, server_side=True)
    served.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
