"""Connect a socket with a deadline, and say in our words why it failed."""

import errno
import os
import socket

import trio

from node_agent.errors import CloseReason, ConnectionFailure

_REASONS = {
    errno.ECONNREFUSED: CloseReason.CONNECT_REFUSED,
    errno.ECONNRESET: CloseReason.CONNECT_REFUSED,
    errno.ETIMEDOUT: CloseReason.CONNECT_TIMEOUT,
    errno.EHOSTUNREACH: CloseReason.CONNECT_UNREACHABLE,
    errno.ENETUNREACH: CloseReason.CONNECT_UNREACHABLE,
    errno.EHOSTDOWN: CloseReason.CONNECT_UNREACHABLE,
}


async def connect(sock: socket.socket, ip: str, port: int, *, timeout_s: float) -> None:
    """Connect a non-blocking socket; raises ConnectionFailure.  The caller closes the socket."""
    address = (ip, port)
    number = sock.connect_ex(address)
    if number == errno.EINPROGRESS:
        # Within the pod the answer is there already: connect(2) again says 0 then, EALREADY or the error otherwise.
        number = sock.connect_ex(address)
    if number == errno.EALREADY:
        with trio.CancelScope(deadline=trio.current_time() + timeout_s):
            await trio.lowlevel.wait_writable(sock)
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number == errno.EALREADY:
            raise ConnectionFailure(
                CloseReason.CONNECT_TIMEOUT, f"no answer from {ip} port {port} within {timeout_s:g} s"
            )
    if number:
        reason = _REASONS.get(number, CloseReason.CONNECT_FAILED)
        raise ConnectionFailure(reason, f"connect to {ip} port {port}: {os.strerror(number)}")
