"""TLS handshakes in memory: two SSLObjects and nothing between them but bytes."""

import ssl
from dataclasses import dataclass
from typing import Final

from cryptography import x509

from ca.tls import KeyAndChain, check_time_ourselves, load_key_and_chain, strict_context
from node_agent.frames import ALPN
from tests.certificates import TRUST_DOMAIN, der

_MOST_ROUND_TRIPS: Final = 6  # TLS 1.3 needs two, TLS 1.2 three, an alert one more


@dataclass(slots=True)
class Side:
    """One end; ``error`` is what ended its handshake, None if it finished."""

    tls: ssl.SSLObject
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO
    finished: bool = False
    error: ssl.SSLError | None = None

    def step(self) -> None:
        """Do what can be done with the bytes that are here."""
        if self.error is not None:
            return
        try:
            if not self.finished:
                self.tls.do_handshake()
                self.finished = True
            # A client learns what the server thinks of its certificate only when it reads.
            self.tls.read(1)
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError as error:
            self.error = error


def context(own: KeyAndChain | None, *roots: x509.Certificate, server_side: bool) -> ssl.SSLContext:
    """The context of a tunnel, without the checks of our own certificate that ``make_credentials`` does."""
    made = strict_context(server_side=server_side, roots=roots, alpn=ALPN, own=own)
    check_time_ourselves(made)
    return made


def careless_context(own: KeyAndChain, root: x509.Certificate, *, server_side: bool) -> ssl.SSLContext:
    """A context that presents even a certificate that OpenSSL would refuse to load."""
    made = strict_context(server_side=server_side, roots=[root], alpn=ALPN, own=None)
    made.set_ciphers("DEFAULT@SECLEVEL=0")
    check_time_ourselves(made)
    load_key_and_chain(made, own)
    return made


def shake_hands(client_context: ssl.SSLContext, server_context: ssl.SSLContext) -> tuple[Side, Side]:
    """Run a handshake until neither side has anything left to say; returns client and server."""
    upward, downward = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = Side(client_context.wrap_bio(downward, upward, server_side=False), downward, upward)
    server = Side(server_context.wrap_bio(upward, downward, server_side=True), upward, downward)
    for _ in range(_MOST_ROUND_TRIPS):
        client.step()
        server.step()
    return client, server


def feed_server(server_context: ssl.SSLContext, data: bytes) -> Side:
    """Send ``data`` to a server instead of a handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = Side(server_context.wrap_bio(incoming, outgoing, server_side=True), incoming, outgoing)
    incoming.write(data)
    server.step()
    return server


def trusting(*roots: x509.Certificate, trust_domain: str = TRUST_DOMAIN) -> dict[str, frozenset[bytes]]:
    """What ``peer_identity`` judges by when one trust domain is all there is."""
    return {trust_domain: frozenset(der(root) for root in roots)}
