"""What ``close`` says to the other end: an abort or an end in order (socket(7), SO_LINGER)."""

import socket
import struct
from typing import Final

_LINGER_RESET: Final = struct.pack("ii", 1, 0)
_NO_LINGER: Final = struct.pack("ii", 0, 0)


def reset_on_close(sock: socket.socket) -> None:
    """Make ``close`` send RST instead of FIN: an aborted stream must not look complete (socket(7), SO_LINGER).

    The sockets of applications are born so (capture/pod_network.py): when the
    agent is killed, the kernel closes them, and that must not look complete either.
    """
    _linger(sock, _LINGER_RESET)


def end_on_close(sock: socket.socket) -> None:
    """Let ``close`` end the stream in order: all of it was handed to the kernel, with its FIN."""
    _linger(sock, _NO_LINGER)


def _linger(sock: socket.socket, value: bytes) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, value)
    except OSError:
        pass
