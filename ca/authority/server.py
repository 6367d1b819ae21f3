"""The network edge of the authority: TLS 1.3 on port 15012, frames, deadlines, limits.

Theory of operation.  One trio task a connection reads a request, hands it to
the worker (``worker.py``: signing and the journal) and writes the reply.  What a peer
can cost is bounded everywhere: connections, the size of a frame (smaller for
those who have not proved who they are), the time for a handshake, for a request
to arrive in full and for a reply to be taken, and the requests that wait for
the worker.  What is over a bound is dropped, or told when to come again.

Draining (SIGTERM): no new connections; idle ones are closed at once; a request
that has arrived in full is answered first.
"""

import logging
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

import trio

from ca.authority import attestation
from ca.authority.attestation.plugins import Attestors
from ca.authority.errors import Refusal
from ca.authority.logs import log
from ca.authority.requests import Asked, Requester
from ca.authority.server_certificate import ServerCertificate
from ca.authority.trust_feed import TrustFeed
from ca.authority.worker import Worker
from ca.messages import ALPN, Attest, AttestWithToken, RefusalCode, Reply, WatchTrust, parse_request
from ca.svid import SvidError, check_dates, identity_of, load_certificate
from ca.tls import verified_chain
from ca.wire import MAX_FRAME_BYTES, FrameDecoder, WireError, encode_frame

_HANDSHAKE_TIMEOUT_S: Final = 10.0
_IDLE_TIMEOUT_S: Final = 30.0  # for a whole request to arrive, and for a reply to be taken
MAX_CONNECTIONS: Final = 2048
_MAX_ANONYMOUS_FRAME_BYTES: Final = 32 * 1024  # a token and a 16 KiB CSR at most
_RECEIVE_BYTES: Final = 64 * 1024


_TlsStream = trio.SSLStream[trio.SocketStream]


class _Dropped(Exception):
    """This connection is closed without an answer; the text says why, for the log."""


class Server:
    """Serves requests until it is told to drain."""

    def __init__(
        self,
        *,
        certificate: ServerCertificate,
        worker: Worker,
        trust: TrustFeed,
        attestors: Attestors,
        trust_domain: str,
    ) -> None:
        self._certificate = certificate
        self._worker = worker
        self._trust = trust
        self._attestors = attestors
        self._trust_domain = trust_domain
        self._connections = 0
        self._draining = False
        self._interruptible: set[trio.CancelScope] = set()

    async def run(self, listeners: Sequence[trio.SocketListener]) -> None:
        """Accept on ``listeners`` (closed here) until ``drain``; returns when the last connection ended."""
        async with trio.open_nursery() as connections:
            with self._until_drained():
                await trio.serve_listeners(self._serve, list(listeners), handler_nursery=connections)

    def drain(self) -> None:
        """Stop accepting, close what is idle, let what runs finish."""
        self._draining = True
        for scope in self._interruptible:
            scope.cancel()

    @contextmanager
    def _until_drained(self) -> Iterator[trio.CancelScope]:
        """What is done inside is given up when draining begins."""
        with trio.CancelScope() as scope:
            self._interruptible.add(scope)
            if self._draining:
                scope.cancel()
            try:
                yield scope
            finally:
                self._interruptible.discard(scope)

    async def _serve(self, stream: trio.SocketStream) -> None:
        address = _peer_address(stream)
        if self._connections >= MAX_CONNECTIONS:
            await trio.aclose_forcefully(stream)
            return
        self._connections += 1
        try:
            await self._serve_tls(stream, address)
        except (WireError, _Dropped) as exc:
            log("refused", level=logging.WARNING, code="bad_request", why=str(exc), requester=address)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as exc:
            log("connection_failed", level=logging.WARNING, why=_network_reason(exc), requester=address)
        except Exception:  # a bug costs this connection, not the authority
            log("internal_error", level=logging.ERROR, exc_info=True, requester=address)
        finally:
            self._connections -= 1
            await trio.aclose_forcefully(stream)

    async def _serve_tls(self, stream: trio.SocketStream, address: str) -> None:
        tls = trio.SSLStream(stream, self._certificate.context, server_side=True, https_compatible=True)
        with self._until_drained() as drained, trio.move_on_after(_HANDSHAKE_TIMEOUT_S) as deadline:
            try:
                await tls.do_handshake()
            except trio.BrokenResourceError:
                await _send_alert(tls, stream)
                raise
        if drained.cancelled_caught:
            return
        if deadline.cancelled_caught:
            raise _Dropped(f"no TLS handshake within {_HANDSHAKE_TIMEOUT_S:.0f} s")
        if tls.selected_alpn_protocol() != ALPN:
            raise _Dropped(f"the client does not speak {ALPN} (ALPN, RFC 7301)")
        try:
            requester = self._requester(tls, address)
        except Refusal as exc:
            await self._refuse(tls, exc)
            raise _Dropped(exc.text) from exc
        try:
            await self._converse(tls, requester)
        except WireError as exc:
            # The stream is lost, but a client of another version deserves to know why.
            with trio.move_on_after(_IDLE_TIMEOUT_S):
                await _send(tls, Refusal(RefusalCode.BAD_REQUEST, str(exc)).reply())
            raise

    async def _converse(self, tls: _TlsStream, requester: Requester) -> None:
        limit_bytes = _MAX_ANONYMOUS_FRAME_BYTES if requester.identity is None else MAX_FRAME_BYTES
        decoder = FrameDecoder(max_frame_bytes=limit_bytes)
        while True:
            arrived: list[dict[str, Any]] = []
            with self._until_drained(), trio.move_on_after(_IDLE_TIMEOUT_S) as deadline:
                arrived = await _receive(tls, decoder)
            if deadline.cancelled_caught and decoder.mid_frame:
                raise _Dropped(f"a request that did not arrive in full within {_IDLE_TIMEOUT_S:.0f} s")
            if not arrived:
                return
            for fields in arrived:
                reply = await self._answer(fields, requester)
                with trio.move_on_after(_IDLE_TIMEOUT_S) as deadline:
                    await _send(tls, reply)
                if deadline.cancelled_caught:
                    raise _Dropped(f"the reply was not taken within {_IDLE_TIMEOUT_S:.0f} s")

    async def _answer(self, fields: dict[str, Any], requester: Requester) -> Reply:
        request = parse_request(fields)
        if isinstance(request, WatchTrust):
            return await self._watch(request, requester)
        judged = None
        if isinstance(request, Attest | AttestWithToken):
            judged = await self._attestors.judge(request, at=datetime.now(UTC))
        peer = requester.address.rpartition(":")[0] if requester.identity is None else requester.identity
        return await self._worker.ask(Asked(request=request, requester=requester, judged=judged), peer=peer)

    async def _watch(self, request: WatchTrust, requester: Requester) -> Reply:
        """Hold the request until there is something to say; no thread waits meanwhile."""
        try:
            attested = attestation.by_certificate(trust_domain=self._trust_domain, presented=requester.identity)
            host = requester.address.rpartition(":")[0]
            with self._until_drained():  # when we go down the agent is answered, and asks the next one
                await self._trust.watch(request, attested.identity, requester.serial, address=host)
            return self._trust.trust
        except Refusal as exc:
            log("refused", level=logging.WARNING, code=str(exc.code), why=exc.text, requester=requester.address)
            return exc.reply()

    def _requester(self, tls: _TlsStream, address: str) -> Requester:
        """Whose certificate the client presented; OpenSSL has verified its path to our roots, but for the dates.

        Raises:
            Refusal: it is not an SVID of our trust domain, or out of date.
        """
        der = tls.getpeercert(binary_form=True)
        if der is None:
            return Requester(address=address, identity=None)
        try:
            leaf = load_certificate(der)
            identity = identity_of(leaf)
            for each in verified_chain(tls._ssl_object):  # noqa: SLF001 - trio hands out everything but the chain
                check_dates(load_certificate(each), at=datetime.now(UTC))
        except SvidError as exc:
            raise Refusal(RefusalCode.UNAUTHENTICATED, f"the client certificate is refused: {exc}") from exc
        if identity.trust_domain != self._trust_domain:
            text = f"the client certificate is of trust domain {identity.trust_domain!r} (X509-SVID 5.1)"
            raise Refusal(RefusalCode.UNAUTHENTICATED, text)
        return Requester(address=address, identity=identity, serial=leaf.serial_number)

    async def _refuse(self, tls: _TlsStream, refusal: Refusal) -> None:
        """Answer the first request, whatever it is: an agent whose clock is wrong deserves to know."""
        with self._until_drained(), trio.move_on_after(_IDLE_TIMEOUT_S):
            if await tls.receive_some(_RECEIVE_BYTES):
                await _send(tls, refusal.reply())


async def _receive(tls: _TlsStream, decoder: FrameDecoder) -> list[dict[str, Any]]:
    """Wait for the next requests; empty when the client has ended the connection."""
    while data := await tls.receive_some(_RECEIVE_BYTES):
        if arrived := decoder.feed(bytes(data)):
            return arrived
    if decoder.mid_frame:
        raise _Dropped("the connection ended in the middle of a request")
    return []


async def _send_alert(tls: _TlsStream, stream: trio.SocketStream) -> None:
    """Tell the peer why the handshake failed, as RFC 8446 6.2 wants.

    OpenSSL has written the alert, but trio leaves it in its buffer; without it
    an agent with an expired certificate would see a closed connection and no reason.
    """
    outgoing = getattr(tls, "_outgoing", None)
    if isinstance(outgoing, ssl.MemoryBIO) and outgoing.pending:
        await stream.send_all(outgoing.read())
        await stream.send_eof()


async def _send(tls: _TlsStream, reply: Reply) -> None:
    try:
        frame = encode_frame(reply.to_wire() | {"time": time.time()})
    except ValueError:  # hundreds of refusals that each repeat a very long identity
        text = f"the reply would have more than {MAX_FRAME_BYTES} bytes: ask for fewer identities at once"
        frame = encode_frame(Refusal(RefusalCode.BAD_REQUEST, text).reply().to_wire())
    await tls.send_all(frame)


def _peer_address(stream: trio.SocketStream) -> str:
    try:
        host, port = stream.socket.getpeername()[:2]
    except OSError:
        return ""  # reset before it was accepted
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _network_reason(error: BaseException) -> str:
    """Name the cause; never the text of a TLS error, which could quote the peer."""
    while isinstance(error, trio.BrokenResourceError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"client certificate: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__
