"""The network edge of the authority: TLS 1.3 on port 15012, frames, deadlines.

Theory of operation.  One trio task a connection: it is let in or not
(``admission.py``), waits for its turn to shake hands (``turnstile.py``), reads
a request, hands it to the ``front_desk``, and writes the reply.  What a peer can
cost is bounded everywhere: connections, requests, the size of a frame (smaller
for those who have not proved a node), what all have sent of unfinished frames,
and the time for a handshake, for a request to arrive in full and for a reply to
be taken.  What is over a bound is dropped, or told when to come again.

Draining (SIGTERM): no new connections; idle ones are closed at once; a request
that has arrived in full is answered first.
"""

import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import trio

from ca.authority.admission import Admission, Visit
from ca.authority.drain import Drain
from ca.authority.errors import Refusal
from ca.authority.front_desk import FrontDesk
from ca.authority.handshake import HungUp, TlsStream, network_reason, peer_address, reset_on_close, shake_hands
from ca.authority.logs import log
from ca.authority.quiet import LogGate
from ca.authority.requests import Requester
from ca.authority.server_certificate import ServerCertificate
from ca.authority.statistics import Statistics
from ca.authority.turnstile import Turnstile
from ca.messages import ALPN, RefusalCode, Reply
from ca.svid import CLOCK_SKEW, SvidError, check_dates, identity_of, load_certificate
from ca.tls import verified_chain
from ca.wire import MAX_FRAME_BYTES, FrameDecoder, WireError, encode_frame

_HANDSHAKE_TIMEOUT_S: Final = 10.0
_IDLE_TIMEOUT_S: Final = 30.0  # for a whole request to arrive, and for a reply to be taken
_STRANGERS_IDLE_TIMEOUT_S: Final = 10.0  # the same, for who has proved no node: a join is one small request
_MAX_STRANGERS_FRAME_BYTES: Final = 32 * 1024  # a token and a 16 KiB CSR at most
_MAX_UNFINISHED_BYTES: Final = 64 * 1024 * 1024  # of frames that have not arrived in full, all connections together
_RECEIVE_BYTES: Final = 64 * 1024
_SUMMARY_S: Final = 60.0


class _Dropped(Exception):
    """This connection is closed without an answer; the text says why, for the log."""


class Server:
    """Serves requests until it is told to drain."""

    def __init__(
        self,
        *,
        certificate: ServerCertificate,
        admission: Admission,
        desk: FrontDesk,
        trust_domain: str,
        drain: Drain,
        gate: LogGate,
        statistics: Statistics,
    ) -> None:
        self._certificate = certificate
        self._admission = admission
        self._desk = desk
        self._trust_domain = trust_domain
        self._drain = drain
        self._gate = gate
        self._statistics = statistics
        self._turnstile = Turnstile()
        self._unfinished_bytes = 0

    @property
    def handshakes_waiting(self) -> int:
        """Connections that have said hello and wait for their turn."""
        return self._turnstile.waiting

    async def run(self, listeners: Sequence[trio.SocketListener]) -> None:
        """Accept on ``listeners`` (closed here) until ``drain``; returns when the last connection ended."""
        async with trio.open_nursery() as background:
            background.start_soon(self._turnstile.run)
            background.start_soon(self._summarise)
            await self._accept(listeners)
            background.cancel_scope.cancel()

    def drain(self) -> None:
        """Stop accepting, close what is idle, let what runs finish."""
        self._drain.begin()

    async def _accept(self, listeners: Sequence[trio.SocketListener]) -> None:
        async with trio.open_nursery() as connections:
            with self._drain.given_up_at_the_end():
                await trio.serve_listeners(self._serve, list(listeners), handler_nursery=connections)

    async def _serve(self, stream: trio.SocketStream) -> None:
        host, address = peer_address(stream)
        visit = self._admission.open(host, now=trio.current_time())
        if isinstance(visit, str):  # no room for words: TLS costs more than anything else here
            self._statistics.connections["refused"] += 1
            self._statistics.over_limit[visit] += 1
            if self._may_log("connection_refused", host):
                log("connection_refused", level=logging.WARNING, limit=visit, requester=address)
            reset_on_close(stream)
            stream.socket.close()
            return
        outcome = "failed"
        try:
            await self._serve_tls(stream, address, visit)
            outcome = "served"
        except HungUp:
            outcome = "gave_up"
        except (WireError, _Dropped) as exc:
            outcome = "dropped"
            if self._may_log("refused", host):
                log("refused", level=logging.WARNING, code="bad_request", why=str(exc), requester=address)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as exc:
            if self._may_log("connection_failed", host):
                log("connection_failed", level=logging.WARNING, why=network_reason(exc), requester=address)
        except Exception:  # a bug costs this connection, not the authority
            log("internal_error", level=logging.ERROR, exc_info=True, requester=address)
        finally:
            self._statistics.connections[outcome] += 1
            self._admission.close(visit)
            await trio.aclose_forcefully(stream)

    async def _serve_tls(self, stream: trio.SocketStream, address: str, visit: Visit) -> None:
        tls: TlsStream | None = None
        with self._drain.given_up_at_the_end() as drained, trio.move_on_after(_HANDSHAKE_TIMEOUT_S):
            tls, visit.waited_s = await shake_hands(stream, self._certificate.context, self._turnstile)
        if drained.cancelled_caught:
            return
        if tls is None:
            raise _Dropped(f"no TLS handshake within {_HANDSHAKE_TIMEOUT_S:.0f} s")
        self._statistics.handshakes.add(visit.waited_s)
        if tls.selected_alpn_protocol() != ALPN:
            raise _Dropped(f"the client does not speak {ALPN} (ALPN, RFC 7301)")
        try:
            requester = self._requester(tls, address)
            self._admit(requester, visit)
        except Refusal as exc:
            await self._refuse(tls, exc)
            raise _Dropped(exc.text) from exc
        try:
            await self._converse(tls, requester, visit)
        except WireError as exc:
            # The stream is lost, but a client of another version deserves to know why.
            with trio.move_on_after(_IDLE_TIMEOUT_S):
                await _send(tls, Refusal(RefusalCode.BAD_REQUEST, str(exc)).reply())
            raise

    def _admit(self, requester: Requester, visit: Visit) -> None:
        """Bill a node, not its address, from now on; raises Refusal if it has too many connections."""
        if requester.identity is None or requester.identity.node_name is None:
            return
        limit = self._admission.prove(visit, requester.identity, now=trio.current_time())
        if limit is not None:
            raise self._desk.over_limit(limit, requester, wait_s=1.0)

    async def _converse(self, tls: TlsStream, requester: Requester, visit: Visit) -> None:
        stranger = visit.node is None
        decoder = FrameDecoder(max_frame_bytes=_MAX_STRANGERS_FRAME_BYTES if stranger else MAX_FRAME_BYTES)
        idle_s = min(_IDLE_TIMEOUT_S, _STRANGERS_IDLE_TIMEOUT_S) if stranger else _IDLE_TIMEOUT_S
        try:
            while True:
                arrived: list[dict[str, Any]] = []
                with self._drain.given_up_at_the_end(), trio.move_on_after(idle_s) as deadline:
                    arrived = await self._receive(tls, decoder)
                if deadline.cancelled_caught and decoder.mid_frame:
                    raise _Dropped(f"a request that did not arrive in full within {idle_s:.0f} s")
                if not arrived:
                    return
                for fields in arrived:
                    reply = await self._desk.answer(fields, requester, visit)
                    with trio.move_on_after(_IDLE_TIMEOUT_S) as deadline:
                        await _send(tls, reply)
                    if deadline.cancelled_caught:
                        raise _Dropped(f"the reply was not taken within {_IDLE_TIMEOUT_S:.0f} s")
        finally:
            self._unfinished_bytes -= decoder.buffered_bytes

    async def _receive(self, tls: TlsStream, decoder: FrameDecoder) -> list[dict[str, Any]]:
        """Wait for the next requests; empty when the client has ended the connection."""
        while data := await tls.receive_some(_RECEIVE_BYTES):
            before = decoder.buffered_bytes
            try:
                arrived = decoder.feed(bytes(data))
            finally:
                self._unfinished_bytes += decoder.buffered_bytes - before
            if arrived:
                return arrived
            if self._unfinished_bytes > _MAX_UNFINISHED_BYTES:
                raise _Dropped("all connections together have sent too much of requests that are not complete")
        if decoder.mid_frame:
            raise _Dropped("the connection ended in the middle of a request")
        return []

    def _requester(self, tls: TlsStream, address: str) -> Requester:
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
            chain = verified_chain(tls._ssl_object)  # noqa: SLF001 - trio hands out everything but the chain
            at = datetime.now(UTC)
            for each in chain[1:]:
                check_dates(load_certificate(each), at=at)
            # That of a node which has expired may be renewed once more (requests.py), and is good for nothing else.
            if identity.node_name is None or at <= leaf.not_valid_after_utc + CLOCK_SKEW:
                check_dates(leaf, at=at)
        except SvidError as exc:
            raise Refusal(RefusalCode.UNAUTHENTICATED, f"the client certificate is refused: {exc}") from exc
        if identity.trust_domain != self._trust_domain:
            text = f"the client certificate is of trust domain {identity.trust_domain!r} (X509-SVID 5.1)"
            raise Refusal(RefusalCode.UNAUTHENTICATED, text)
        return Requester(
            address=address,
            identity=identity,
            serial=leaf.serial_number,
            root_der=chain[-1],
            not_after=leaf.not_valid_after_utc,
        )

    async def _refuse(self, tls: TlsStream, refusal: Refusal) -> None:
        """Answer the first request, whatever it is: an agent whose clock is wrong deserves to know."""
        with self._drain.given_up_at_the_end(), trio.move_on_after(_IDLE_TIMEOUT_S):
            if await tls.receive_some(_RECEIVE_BYTES):
                await _send(tls, refusal.reply())

    def _may_log(self, event: str, host: str) -> bool:
        """What a peer can cause at will is not written as often as it likes."""
        return self._gate.admits(event, host, now=trio.current_time())

    async def _summarise(self) -> None:
        while True:
            await trio.sleep(_SUMMARY_S)
            if left_out := self._gate.left_out():
                self._statistics.log_lines_left_out += sum(left_out.values())
                log("log_lines_left_out", level=logging.WARNING, lines=left_out)


async def _send(tls: TlsStream, reply: Reply) -> None:
    try:
        frame = encode_frame(reply.to_wire() | {"time": time.time()})
    except ValueError:  # hundreds of refusals that each repeat a very long identity
        text = f"the reply would have more than {MAX_FRAME_BYTES} bytes: ask for fewer identities at once"
        frame = encode_frame(Refusal(RefusalCode.BAD_REQUEST, text).reply().to_wire())
    await tls.send_all(frame)
