"""A program that says one word to whoever reaches it."""

import socket
from contextlib import suppress
from typing import Final

WELCOME: Final = b"welcome"


def welcome_all(listener: socket.socket) -> None:
    """Until ``listener`` is shut down."""
    while True:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        except OSError:
            return
        with connection, suppress(OSError):
            connection.sendall(WELCOME)
