"""The TLS handshake of a connection that was accepted, and words for how connections fail."""

import socket
import ssl
import struct
from typing import Final

import trio

from ca.authority.turnstile import Turnstile

_CLOSE_WAIT: Final = 8  # tcp(7), struct tcp_info: tcpi_state is its first byte
_CLOSE: Final = 7

TlsStream = trio.SSLStream[trio.SocketStream]


class HungUp(Exception):
    """The client has closed the connection before its turn came: it is not worth a handshake."""


async def shake_hands(
    stream: trio.SocketStream, context: ssl.SSLContext, turnstile: Turnstile
) -> tuple[TlsStream, float]:
    """Do the handshake when it is this connection's turn, which it gets only after it has said something.

    Returns the stream, and for how many seconds the client has been waiting for us.

    Raises:
        HungUp: nobody waits for it any more.
        trio.BrokenResourceError: it failed; the peer was told why.
    """
    tls = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
    await trio.lowlevel.wait_readable(stream.socket)
    began = trio.current_time()
    async with turnstile.turn():
        if _has_hung_up(stream.socket):
            raise HungUp
        try:
            await tls.do_handshake()
        except trio.BrokenResourceError:
            await _send_alert(tls, stream)
            raise
    return tls, trio.current_time() - began


def peer_address(stream: trio.SocketStream) -> tuple[str, str]:
    """The other end: its IP address, and the address with its port for logs; empty if it has gone already."""
    try:
        host, port = stream.socket.getpeername()[:2]
    except OSError:
        return "", ""  # reset before it was accepted
    return host, f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def network_reason(error: BaseException) -> str:
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


def reset_on_close(stream: trio.SocketStream) -> None:
    """Make the end of this connection cost us nothing: no TIME_WAIT, nothing left to send."""
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _has_hung_up(sock: trio.socket.SocketType) -> bool:
    state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return state in (_CLOSE_WAIT, _CLOSE)


async def _send_alert(tls: TlsStream, stream: trio.SocketStream) -> None:
    """Tell the peer why the handshake failed, as RFC 8446 6.2 wants.

    OpenSSL has written the alert, but trio leaves it in its buffer; without it
    an agent with an expired certificate would see a closed connection and no reason.
    """
    outgoing = getattr(tls, "_outgoing", None)
    if isinstance(outgoing, ssl.MemoryBIO) and outgoing.pending:
        await stream.send_all(outgoing.read())
        await stream.send_eof()
