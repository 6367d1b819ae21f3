"""Knock at an application: does it accept a connection, does it shake hands?

Used by the agent of the endpoint for one that is enrolled, and by the agent of
the client for one that is not.  No byte is sent but the TLS handshake's; a
certificate is not looked at: whose it is does not make an application more or
less alive, and its clients judge it themselves.
"""

import functools
import socket
import ssl
import struct
from typing import Final

import trio

from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.frames import Check
from node_agent.tunnel import connect
from node_agent.tunnel.tunnel import shake_hands

CHECK_FAILED: Final = frozenset({CloseReason.NOT_TLS, CloseReason.HANDSHAKE_FAILED})
"""What a check may say of an application that a connection would not find out."""

_LINGER_OFF: Final = struct.pack("ii", 0, 0)  # socket(7)
_NOT_TLS: Final = frozenset(
    {
        "WRONG_VERSION_NUMBER",
        "BAD_PACKET_LENGTH",
        "BAD_RECORD_TYPE",
        "PACKET_LENGTH_TOO_LONG",
        "RECORD_LENGTH_MISMATCH",
        "UNEXPECTED_MESSAGE",
    }
)
"""What OpenSSL says of an answer that is no TLS record."""


async def probe(sock: socket.socket, ip: str, port: int, check: Check, *, greeting: bytes = b"") -> None:
    """Connect ``sock`` as ``check`` wants it; takes it over.  ``greeting`` is sent first, if there is one.

    Raises:
        ConnectionFailure: the application did not do it within ``check.timeout_s``.
        OSError: nothing can be said about it.
    """
    deadline = trio.current_time() + check.timeout_s
    try:
        await connect(sock, ip, port, timeout_s=check.timeout_s)
        if greeting:
            sock.send(greeting)  # the send queue of a new connection is empty: it fits
        if check.tls:
            sock = await _shake_hands(sock, ip, port, check.timeout_s, deadline)
        # The application sees a connection that ended, not one that broke.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_OFF)
    finally:
        sock.close()


async def _shake_hands(sock: socket.socket, ip: str, port: int, timeout_s: float, deadline: float) -> ssl.SSLSocket:
    """Returns the same connection as a TLS socket; closes it if that fails."""
    owned = sock
    try:
        owned = tls = _context().wrap_socket(sock, do_handshake_on_connect=False, suppress_ragged_eofs=False)
        with trio.CancelScope(deadline=deadline):
            await shake_hands(tls)
            return tls
        raise ConnectionFailure(
            CloseReason.HANDSHAKE_TIMEOUT, f"no TLS handshake with {ip} port {port} within {timeout_s:g} s"
        )
    except OSError as error:
        owned.close()
        is_tls = not isinstance(error, ssl.SSLError) or error.reason not in _NOT_TLS
        reason = CloseReason.HANDSHAKE_FAILED if is_tls else CloseReason.NOT_TLS
        raise ConnectionFailure(reason, f"TLS handshake with {ip} port {port}: {_words(error)}") from error
    except BaseException:
        owned.close()
        raise


def _words(error: OSError) -> str:
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return "the application closed the connection"
    return (error.reason if isinstance(error, ssl.SSLError) else error.strerror) or type(error).__name__


@functools.cache
def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
