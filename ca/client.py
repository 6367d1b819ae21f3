"""The agents' side of the conversation with the CA.

Every call opens one TLS connection, asks once and closes it: an agent asks a
few times an hour, so that keeping a connection would only add a state in which
it may be dead.  OpenSSL checks all dates here, without tolerance: the CA's own
certificate is set back by its clock skew when it is made.
"""

import os
import socket
import ssl
from collections.abc import Sequence
from typing import Final

import trio
from cryptography import x509

from ca.errors import CaProtocolError, CaRefused, CaUnreachable, WireError
from ca.messages import (
    ALPN,
    AttestWithToken,
    Bundle,
    GetBundle,
    Issued,
    Refused,
    RenewNode,
    Reply,
    Request,
    SignRequest,
    SignWorkloads,
    parse_reply,
)
from ca.spiffe import SpiffeId
from ca.svid import SvidError, identity_of, load_certificate
from ca.tls import KeyAndChain, strict_context
from ca.wire import FrameDecoder, encode_frame

_DEADLINE_S: Final = 5.0  # a whole request; a healthy CA answers in milliseconds
_CONNECT_DEADLINE_S: Final = 2.0  # so that a healed link is tried again soon: lost SYNs back off to seconds
_READ_BYTES: Final = 64 * 1024


class CaClient:
    """Asks the CA at ``address`` and believes only a CA that the trust bundle vouches for.

    Every method raises ``CaUnreachable``, ``CaRefused`` or ``CaProtocolError``
    and returns within 5 seconds.
    """

    def __init__(self, *, address: tuple[str, int], roots_pem: bytes, trust_domain: str) -> None:
        """Raises ValueError when ``roots_pem`` holds no certificate, or one that can not be read."""
        self._address = address
        self._trust_domain = trust_domain
        self._authority = SpiffeId.authority(trust_domain)
        self._roots = tuple(x509.load_pem_x509_certificates(roots_pem))

    @property
    def roots(self) -> tuple[x509.Certificate, ...]:
        """The trust bundle in force: the configured one, until the CA sends another."""
        return self._roots

    def replace_roots(self, roots: Sequence[x509.Certificate]) -> None:
        """Trust ``roots`` from now on, and nothing else.  They came over a connection that the old ones vouched for."""
        if roots:
            self._roots = tuple(roots)

    async def attest(self, token: str, node: str, csr_der: bytes) -> Issued:
        """Buy a node certificate with a join token."""
        return _issued(await self._ask(AttestWithToken(node=node, token=token, csr_der=csr_der), None))

    async def renew_node(self, csr_der: bytes, own: KeyAndChain) -> Issued:
        """Renew the node certificate ``own``, for a new key."""
        return _issued(await self._ask(RenewNode(csr_der=csr_der), own))

    async def sign(self, requests: Sequence[SignRequest], own: KeyAndChain) -> Issued:
        """Ask for SVIDs of workloads, as the node that ``own`` proves; each may be refused on its own."""
        issued = _issued(await self._ask(SignWorkloads(requests=tuple(requests)), own))
        if [item.identity for item in issued.certificates] != [request.identity for request in requests]:
            raise CaProtocolError("the CA answered for other identities than were asked for")
        return issued

    async def bundle(self) -> Bundle:
        """Fetch the trust bundle."""
        reply = await self._ask(GetBundle(), None)
        if not isinstance(reply, Bundle):
            raise CaProtocolError(f"the CA answered a request for its bundle with {type(reply).__name__}")
        return reply

    async def _ask(self, request: Request, own: KeyAndChain | None) -> Reply:
        where = f"the CA at {self._address[0]} port {self._address[1]}"
        try:
            with trio.fail_after(_DEADLINE_S):
                reply = await self._exchange(request, own)
        except trio.TooSlowError as error:
            raise CaUnreachable(f"{where} did not answer within {_DEADLINE_S:g} s") from error
        except SvidError as error:
            raise CaUnreachable(f"{where} has not a CA's certificate: {error}") from error
        except (OSError, trio.BrokenResourceError) as error:
            raise CaUnreachable(f"{where}: {_why(error)}") from error
        except WireError as error:
            raise CaProtocolError(f"{where} sent something else than a reply: {error}") from error
        if isinstance(reply, Refused):
            raise CaRefused(reply.code, reply.text, reply.retry_after_s)
        return reply

    async def _exchange(self, request: Request, own: KeyAndChain | None) -> Reply:
        context = strict_context(server_side=False, roots=self._roots, alpn=ALPN, own=own)
        with trio.move_on_after(_CONNECT_DEADLINE_S) as connecting:
            transport = await trio.open_tcp_stream(*self._address)
        if connecting.cancelled_caught:
            raise TimeoutError("not connected in time")
        stream = trio.SSLStream(transport, context, server_hostname=None)
        try:
            await stream.do_handshake()
            self._require_authority(stream)
            await stream.send_all(encode_frame(request.to_wire()))
            return await _receive(stream)
        finally:
            # No close_notify: the reply is framed, so nothing can be cut off unseen.
            await trio.aclose_forcefully(stream)

    def _require_authority(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        identity = identity_of(load_certificate(stream.getpeercert(binary_form=True)))
        if identity != self._authority:
            raise SvidError(f"it is {identity}, not {self._authority}", "ca.messages")
        if stream.selected_alpn_protocol() != ALPN:
            raise WireError(f"does not speak {ALPN}")


async def _receive(stream: trio.SSLStream[trio.SocketStream]) -> Reply:
    decoder = FrameDecoder()
    while True:
        data = await stream.receive_some(_READ_BYTES)
        if not data:
            raise ConnectionAbortedError("it closed the connection without a reply")
        messages = decoder.feed(data)
        if messages:
            return parse_reply(messages[0])


def _issued(reply: Reply) -> Issued:
    if not isinstance(reply, Issued):
        raise CaProtocolError(f"the CA answered a request for certificates with {type(reply).__name__}")
    return reply


def _why(error: BaseException) -> str:
    """The innermost cause in words: trio wraps ``ssl`` and socket errors in errors without a text of their own."""
    while True:
        if isinstance(error, BaseExceptionGroup):  # one for each address that was tried
            error = error.exceptions[0]
        elif error.__cause__ is not None and getattr(error, "errno", None) is None:
            error = error.__cause__
        else:
            break
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not to be trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}"
    if isinstance(error, socket.gaierror):
        return f"its name can not be resolved: {error.strerror}"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__


def load_chain(chain_der: Sequence[bytes]) -> tuple[x509.Certificate, ...]:
    """Read certificates that came in a reply.

    Raises:
        CaProtocolError: one of them is not a certificate.
    """
    try:
        return tuple(load_certificate(der) for der in chain_der)
    except SvidError as error:
        raise CaProtocolError(f"the CA sent a bad certificate: {error}") from error
