"""Our own bundle over HTTPS, for the authorities of other trust domains.

By either profile of SPIFFE Federation 5.2: with the authority's own SVID
(``https_spiffe``), or with a certificate of a public CA (``https_web``), which is
read again when its file changes.  5.2.1.3: "servers MUST NOT require client
authentication": what is served is public.

The server is bounded against everybody (``ca.http_server``): connections, time
for a handshake and a request, size of a request.
"""

import logging
import ssl
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import trio

from ca.authority.errors import AuthorityError
from ca.authority.federation.relation import Profile
from ca.authority.federation.settings import BundleEndpointSettings
from ca.authority.logs import log
from ca.bundle import write_bundle
from ca.http_server import JSON, HttpServer, Request, Response, Routes
from ca.tls import KeyAndChain, load_key_and_chain
from ca.trust import TrustBundle

PATH: Final = "/"


class BundleEndpoint:
    """Serves the bundle that ``bundle`` returns, at ``/``; ``own`` is the authority's own SVID of now."""

    def __init__(
        self, config: BundleEndpointSettings, *, bundle: Callable[[], TrustBundle], own: Callable[[], KeyAndChain]
    ) -> None:
        self._config = config
        self._bundle = bundle
        self._own = own
        self._context: ssl.SSLContext | None = None
        self._made_of: object = None

    async def run(self, listeners: Sequence[trio.abc.Listener[trio.abc.HalfCloseableStream]]) -> None:
        """Serve on ``listeners`` (closed at the end) until cancelled."""
        routes: Routes = {PATH: {"GET": self._answer}}
        await HttpServer(routes, secure=self._secure).run(listeners)

    def require_usable(self) -> None:
        """Check what the configuration names, before anything is served.

        Raises:
            AuthorityError: certificate or key can not be used.
        """
        self._context_now()

    def _answer(self, _request: Request) -> Response:
        hint_s = float(self._config.refresh_hint_s)
        return Response(200, JSON, write_bundle(replace(self._bundle(), refresh_hint_s=hint_s)))

    async def _secure(self, stream: trio.abc.HalfCloseableStream) -> trio.abc.Stream:
        tls = trio.SSLStream(stream, self._context_now(), server_side=True, https_compatible=True)
        await tls.do_handshake()
        return tls

    def _context_now(self) -> ssl.SSLContext:
        """The context for the next connection; made again when what it is made of has changed."""
        made_of = self._own() if self._config.profile is Profile.HTTPS_SPIFFE else self._files()
        if self._context is None or made_of != self._made_of:
            try:
                self._context = self._new_context(made_of)
            except AuthorityError as exc:
                # A renewed certificate that was half written: the one that was in use is.
                if self._context is None:
                    raise
                log("bundle_endpoint_certificate", level=logging.ERROR, why=str(exc))
            self._made_of = made_of
        return self._context

    def _new_context(self, made_of: object) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2  # 5.2: "Mozilla intermediate compatibility"
        context.options |= ssl.OP_NO_COMPRESSION
        context.num_tickets = 0
        context.set_alpn_protocols(["http/1.1"])
        if isinstance(made_of, KeyAndChain):
            load_key_and_chain(context, made_of)
            return context
        certificate, key = self._config.certificate_file, self._config.key_file
        assert certificate is not None
        assert key is not None
        try:
            context.load_cert_chain(certificate, key, password=_refuse_to_ask)
        except (OSError, ssl.SSLError, ValueError) as exc:
            why = exc.strerror if isinstance(exc, OSError) and not isinstance(exc, ssl.SSLError) else "they do not fit"
            raise AuthorityError(
                f"[bundle_endpoint] certificate_file {certificate} and key_file {key} can not be used: {why}; "
                "they have to be a PEM chain, leaf first, and its private key without a passphrase"
            ) from exc
        return context

    def _files(self) -> object:
        found = []
        for path in (self._config.certificate_file, self._config.key_file):
            assert path is not None
            found.append(_signature(path))
        return tuple(found)


def _signature(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _refuse_to_ask() -> str:
    """OpenSSL would ask on the terminal for the passphrase of an encrypted key."""
    raise ValueError("the key is encrypted")
