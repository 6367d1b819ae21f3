"""The agents' side of the conversation with the CA.

Every call but ``watch`` opens one TLS connection, asks once and closes it: an
agent asks a few times an hour, so that keeping a connection would only add a
state in which it may be dead.  ``watch`` is how changes of the trust arrive at
once, and keeps its connection for that.
"""

import os
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

import trio
from cryptography import x509

from ca.connection import CaConnection, Clock
from ca.errors import CaProtocolError, CaRefused, CaUnreachable, WireError
from ca.messages import (
    ALPN,
    Attest,
    AttestWithToken,
    Bundle,
    GetBundle,
    Issued,
    JwtIssued,
    Refused,
    RenewNode,
    Reply,
    Request,
    SignJwt,
    SignRequest,
    SignWorkloads,
    WatchTrust,
)
from ca.spiffe import SpiffeId
from ca.svid import SvidError, load_certificate
from ca.tls import KeyAndChain, strict_context
from ca.trust import Trust

JOIN_TOKEN: Final = "join_token"
_DEADLINE_S: Final = 5.0  # a whole request; a healthy CA answers in milliseconds
_CONNECT_DEADLINE_S: Final = 2.0  # so that a healed link is tried again soon: lost SYNs back off to seconds
_WATCH_DEADLINE_S: Final = 35.0  # a watch that is answered takes up to 25 s


def _utc_now() -> datetime:
    return datetime.now(UTC)


class CaClient:
    """Asks the CA at ``address`` and believes only a CA that the trust bundle vouches for.

    Every method raises ``CaUnreachable``, ``CaRefused`` or ``CaProtocolError``
    and returns within 5 seconds, ``watch`` within 35.  ``clock`` compares our
    clock with the CA's, as of its last reply.
    """

    def __init__(
        self,
        *,
        address: tuple[str, int],
        roots_pem: bytes,
        trust_domain: str,
        utc_now: Callable[[], datetime] = _utc_now,
    ) -> None:
        """Raises ValueError when ``roots_pem`` holds no certificate, or one that can not be read."""
        self._address = address
        self._trust_domain = trust_domain
        self._authority = SpiffeId.authority(trust_domain)
        self._roots = tuple(x509.load_pem_x509_certificates(roots_pem))
        self._utc_now = utc_now
        self.clock: Clock | None = None

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

    async def attest_with(self, plugin: str, evidence: bytes, node: str, csr_der: bytes) -> Issued:
        """Buy a node certificate with the evidence that a plugin of the CA wants."""
        if plugin == JOIN_TOKEN:
            return await self.attest(evidence.decode("ascii"), node, csr_der)
        request = Attest(plugin=plugin, node=node, evidence=evidence, csr_der=csr_der)
        return _issued(await self._ask(request, None))

    async def renew_node(self, csr_der: bytes, own: KeyAndChain) -> Issued:
        """Renew the node certificate ``own``, for a new key."""
        return _issued(await self._ask(RenewNode(csr_der=csr_der), own))

    async def sign(self, requests: Sequence[SignRequest], own: KeyAndChain) -> Issued:
        """Ask for SVIDs of workloads, as the node that ``own`` proves; each may be refused on its own."""
        issued = _issued(await self._ask(SignWorkloads(requests=tuple(requests)), own))
        if [item.identity for item in issued.certificates] != [request.identity for request in requests]:
            raise CaProtocolError("the CA answered for other identities than were asked for")
        return issued

    async def sign_jwt(
        self, identity: SpiffeId, audience: tuple[str, ...], own: KeyAndChain, *, ttl_s: float = 0.0
    ) -> str:
        """Ask for a JWT-SVID of a workload, as the node that ``own`` proves; returns the token, not verified."""
        reply = await self._ask(SignJwt(identity=identity, audience=audience, ttl_s=ttl_s), own)
        if not isinstance(reply, JwtIssued):
            raise CaProtocolError(f"the CA answered a request for a JWT-SVID with {type(reply).__name__}")
        return reply.token

    async def bundle(self) -> Bundle:
        """Fetch the trust bundle."""
        reply = await self._ask(GetBundle(), None)
        if not isinstance(reply, Bundle):
            raise CaProtocolError(f"the CA answered a request for its bundle with {type(reply).__name__}")
        return reply

    async def connect(self, own: KeyAndChain | None) -> CaConnection:
        """Open a connection to ask more than once; the caller closes it."""
        with self._translated(_DEADLINE_S), trio.fail_after(_DEADLINE_S):
            return await self._connect(own)

    async def watch(self, connection: CaConnection, *, version: int, digest: bytes) -> Trust:
        """Say which trust is in force, and wait for another one; the CA answers within 25 s in any case."""
        with self._translated(_WATCH_DEADLINE_S), trio.fail_after(_WATCH_DEADLINE_S):
            reply = await connection.ask(WatchTrust(version=version, digest=digest))
        self._note_time(connection)
        if isinstance(reply, Refused):
            raise CaRefused(reply.code, reply.text, reply.retry_after_s)
        if not isinstance(reply, Trust):
            raise CaProtocolError(f"the CA answered a request for trust with {type(reply).__name__}")
        return reply

    async def _ask(self, request: Request, own: KeyAndChain | None) -> Reply:
        with self._translated(_DEADLINE_S), trio.fail_after(_DEADLINE_S):
            connection = await self._connect(own)
            try:
                reply = await connection.ask(request)
            finally:
                await connection.close()
        self._note_time(connection)
        if isinstance(reply, Refused):
            raise CaRefused(reply.code, reply.text, reply.retry_after_s)
        return reply

    async def _connect(self, own: KeyAndChain | None) -> CaConnection:
        context = strict_context(server_side=False, roots=self._roots, alpn=ALPN, own=own)
        with trio.move_on_after(_CONNECT_DEADLINE_S) as connecting:
            transport = await trio.open_tcp_stream(*self._address)
        if connecting.cancelled_caught:
            raise TimeoutError("not connected in time")
        return await CaConnection.open(transport, context, authority=self._authority, utc_now=self._utc_now)

    def _note_time(self, connection: CaConnection) -> None:
        if connection.clock is not None:
            self.clock = connection.clock

    @contextmanager
    def _translated(self, deadline_s: float) -> Iterator[None]:
        """Turn what the network and the peer can do into the three errors that callers know."""
        where = f"the CA at {self._address[0]} port {self._address[1]}"
        try:
            yield
        except trio.TooSlowError as error:
            raise CaUnreachable(f"{where} did not answer within {deadline_s:g} s") from error
        except SvidError as error:
            raise CaUnreachable(f"{where} has not a CA's certificate: {error}") from error
        except (OSError, trio.BrokenResourceError) as error:
            raise CaUnreachable(f"{where}: {_why(error)}") from error
        except WireError as error:
            raise CaProtocolError(f"{where} sent something else than a reply: {error}") from error


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
