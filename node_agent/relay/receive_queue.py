"""What waits to be read from an application."""

import socket


def has_only_its_end(sock: socket.socket) -> bool:
    """Whether the application's FIN is all that is still to be read; raises OSError if it was reset instead."""
    try:
        return not sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
