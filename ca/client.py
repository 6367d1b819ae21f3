"""The agents' side of the conversation with the CA.

Every call but ``watch`` opens one TLS connection, asks once and closes it: an
agent asks a few times an hour, so that keeping a connection would only add a
state in which it may be dead.  ``watch`` is how changes of the trust arrive at
once, and keeps its connection for that.

The CA may have several replicas: several addresses, or a name with several.  A
request goes to one of them, and to the next when that one is not reached, is
not a CA, or says that it can not serve now.  When a replica is lost after the
request was sent, nobody knows whether it was executed.  Asking another one again
is harmless for certificates (one more is issued, and nobody has it) and is done;
it is not for a join token, which may be used up: then the caller decides.
"""

import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Final, TypeVar

import trio
from cryptography import x509

from ca.addresses import Replica, Replicas
from ca.connection import CaConnection, Clock
from ca.errors import CaError, CaProtocolError, CaRefused, CaUnreachable
from ca.failures import translated
from ca.messages import (
    ALPN,
    Attest,
    AttestWithToken,
    Bundle,
    GetBundle,
    Issued,
    JwtIssued,
    RefusalCode,
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
_OPEN_DEADLINE_S: Final = 2.0  # to shake hands too, while there is another replica to ask
_REPLY_DEADLINE_S: Final = 3.0  # likewise, for the answer
_WATCH_DEADLINE_S: Final = 35.0  # a watch that is answered takes up to 25 s
_REPEATABLE: Final = (GetBundle, RenewNode, SignJwt, SignWorkloads)


T = TypeVar("T")


def _utc_now() -> datetime:
    return datetime.now(UTC)


class CaClient:
    """Asks the CA at ``addresses`` and believes only a CA that the trust bundle vouches for.

    Every method raises ``CaUnreachable``, ``CaRefused`` or ``CaProtocolError``
    and returns within 5 seconds, ``watch`` within 35.  ``clock`` compares our
    clock with the CA's, as of its last reply.
    """

    def __init__(
        self,
        *,
        addresses: Sequence[tuple[str, int]],
        roots_pem: bytes,
        trust_domain: str,
        utc_now: Callable[[], datetime] = _utc_now,
        rng: random.Random | None = None,
    ) -> None:
        """Raises ValueError when ``roots_pem`` holds no certificate, or one that can not be read."""
        self._addresses = tuple(addresses)
        self._replicas = Replicas(rng=rng or random.Random())  # noqa: S311 - spreads load, keeps no secret
        self._trust_domain = trust_domain
        self._authority = SpiffeId.authority(trust_domain)
        self._roots = tuple(x509.load_pem_x509_certificates(roots_pem))
        self._utc_now = utc_now
        self.clock: Clock | None = None

    @property
    def trust_domain(self) -> str:
        """Whose CA it is."""
        return self._trust_domain

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

        async def opened(connection: CaConnection, _reply_deadline_s: float) -> CaConnection:
            return connection

        return await self._of_any(own, opened, repeatable=True)

    async def watch(self, connection: CaConnection, *, version: int, digest: bytes) -> Trust:
        """Say which trust is in force, and wait for another one; the CA answers within 25 s in any case."""
        with translated("the CA", _WATCH_DEADLINE_S), trio.fail_after(_WATCH_DEADLINE_S):
            reply = await connection.ask(WatchTrust(version=version, digest=digest))
        self._note_time(connection)
        if isinstance(reply, Refused):
            raise CaRefused(reply.code, reply.text, reply.retry_after_s)
        if not isinstance(reply, Trust):
            raise CaProtocolError(f"the CA answered a request for trust with {type(reply).__name__}")
        return reply

    async def _ask(self, request: Request, own: KeyAndChain | None) -> Reply:
        async def asked(connection: CaConnection, reply_deadline_s: float) -> Reply:
            try:
                with trio.fail_after(reply_deadline_s):
                    reply = await connection.ask(request)
            finally:
                await connection.close()
            self._note_time(connection)
            if isinstance(reply, Refused):
                raise CaRefused(reply.code, reply.text, reply.retry_after_s)
            return reply

        return await self._of_any(own, asked, repeatable=isinstance(request, _REPEATABLE))

    async def _of_any(
        self,
        own: KeyAndChain | None,
        ask: Callable[[CaConnection, float], Awaitable[T]],
        *,
        repeatable: bool,
    ) -> T:
        """Connect to a replica and ``ask``; then the next one, as long as that can do no harm."""
        failures: list[CaError] = []
        deadline = trio.current_time() + _DEADLINE_S
        replicas = await self._resolved(failures)
        for position, replica in enumerate(replicas, start=1):
            last = position == len(replicas)
            open_s, reply_s = (_DEADLINE_S, _DEADLINE_S) if last else (_OPEN_DEADLINE_S, _REPLY_DEADLINE_S)
            again = True
            try:
                with translated(str(replica), open_s), trio.fail_at(deadline):
                    connection = await self._opened(replica, own, open_s)
                again = repeatable
                with translated(str(replica), reply_s), trio.fail_at(deadline):
                    answer = await ask(connection, reply_s)
            except CaRefused as error:
                # It executed nothing; one that is busy, or lost its database, says nothing of the others.
                if error.code != RefusalCode.UNAVAILABLE:
                    raise
                failures.append(error)
            except CaError as error:
                failures.append(error)
                self._replicas.failed(replica, now=trio.current_time())
                if not again:
                    break
            else:
                self._replicas.worked(replica)
                return answer
        raise _none_of_them(failures)

    async def _resolved(self, failures: list[CaError]) -> Sequence[Replica]:
        """Every address that the configured names have now, in the order in which to try them."""
        found: list[Replica] = []
        for name, port in self._addresses:
            try:
                with translated(f"the CA at {name} port {port}", _DEADLINE_S), trio.fail_after(_CONNECT_DEADLINE_S):
                    rows = await trio.socket.getaddrinfo(name, port, type=trio.socket.SOCK_STREAM)
            except CaError as error:
                failures.append(error)
                continue
            found += [Replica(name=name, ip=str(row[4][0]), port=port) for row in rows]
        return self._replicas.order(found, now=trio.current_time())

    async def _opened(self, replica: Replica, own: KeyAndChain | None, deadline_s: float) -> CaConnection:
        context = strict_context(server_side=False, roots=self._roots, alpn=ALPN, own=own)
        with trio.fail_after(deadline_s):
            with trio.move_on_after(_CONNECT_DEADLINE_S) as connecting:
                transport = await trio.open_tcp_stream(replica.ip, replica.port)
            if connecting.cancelled_caught:
                raise TimeoutError("not connected in time")
            return await CaConnection.open(transport, context, authority=self._authority, utc_now=self._utc_now)

    def _note_time(self, connection: CaConnection) -> None:
        if connection.clock is not None:
            self.clock = connection.clock


def _none_of_them(failures: Sequence[CaError]) -> CaError:
    """What to tell of one replica or of several; a refusal that was heard tells more than silence."""
    refused = [error for error in failures if isinstance(error, CaRefused)]
    if refused:
        return refused[-1]
    if len(failures) == 1:
        return failures[0]
    return CaUnreachable("; ".join(str(error) for error in failures))


def _issued(reply: Reply) -> Issued:
    if not isinstance(reply, Issued):
        raise CaProtocolError(f"the CA answered a request for certificates with {type(reply).__name__}")
    return reply


def load_chain(chain_der: Sequence[bytes]) -> tuple[x509.Certificate, ...]:
    """Read certificates that came in a reply.

    Raises:
        CaProtocolError: one of them is not a certificate.
    """
    try:
        return tuple(load_certificate(der) for der in chain_der)
    except SvidError as error:
        raise CaProtocolError(f"the CA sent a bad certificate: {error}") from error
