"""How much of what was written still waits to be taken by the other end."""

import fcntl
import socket
import struct
import termios
from typing import Final

_INT: Final = struct.Struct("i")


def unsent_bytes(sock: socket.socket) -> int:
    """Bytes in the send queue that the peer has not acknowledged (tcp(7), SIOCOUTQ); 0 for a socket that is closed."""
    try:
        (waiting,) = _INT.unpack(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(_INT.size)))
    except (OSError, ValueError):
        return 0
    return int(waiting)
