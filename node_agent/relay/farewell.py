"""The last words on a tunnel whose connection was aborted: RESET, and why.

Closing a socket at once would lose them: what is being written is unfinished,
and a close with bytes unread sends RST, which throws away what the peer has not
read yet.  So the frame in writing is finished, RESET follows, the socket is
shut for writing, and what still arrives is thrown away until the peer has
closed its end.  From a peer that takes none of it the tunnel is reset after
``_GIVE_UP_S``; it sees its end without an EOF, which it must treat as a reset
as well.
"""

import socket
import ssl
from collections.abc import Callable
from typing import Final

from node_agent.relay.linger import reset_on_close
from node_agent.relay.loop import IN, OUT, RelayLoop

_GIVE_UP_S: Final = 2.0
_WANT: Final = (ssl.SSLWantWriteError, ssl.SSLWantReadError)


class Farewell:
    """Owns ``tunnel`` from ``start``; everything happens in the relay loop."""

    __slots__ = ("_loop", "_over", "_send", "_to_write", "_tunnel")

    def __init__(
        self,
        *,
        loop: RelayLoop,
        tunnel: ssl.SSLSocket,
        to_write: list[memoryview],
        send: Callable[[memoryview], object] | None = None,
    ) -> None:
        """``to_write`` begins with what a blocked write has to be repeated with (SSL_write(3)), if there is one.

        ``send`` writes to the tunnel, if that is not for the tunnel alone to do.
        """
        self._loop = loop
        self._tunnel = tunnel
        self._send = tunnel.send if send is None else send
        self._to_write = to_write
        self._over = False

    def start(self) -> None:
        """Take the tunnel's events over from the pair that was aborted."""
        fd = self._tunnel.fileno()
        self._write()
        if self._over:
            return
        self._loop.take_over(fd, IN | OUT if self._to_write else IN, self._on_event)
        self._loop.call_later(_GIVE_UP_S, self._give_up)

    def _on_event(self, event: int) -> None:
        if event & OUT and self._to_write:
            self._write()
            if not self._to_write and not self._over:
                self._loop.interest(self._tunnel.fileno(), IN)
        if event & ~OUT and not self._over:
            self._read()

    def _write(self) -> None:
        try:
            while self._to_write:
                self._send(self._to_write[0])
                del self._to_write[0]
            socket.socket.shutdown(self._tunnel, socket.SHUT_WR)  # not SSLSocket's, which forgets TLS
        except _WANT:
            pass
        except OSError:
            self._leave()

    def _read(self) -> None:
        """Throw away what comes, as it comes: nobody needs it decrypted."""
        try:
            received = socket.socket.recv_into(self._tunnel, self._loop.arena)
        except BlockingIOError:
            return
        except OSError:
            received = 0
        if not received:
            self._leave()

    def _give_up(self) -> None:
        """A peer whose application does not read would not see a FIN for as long: RST overtakes the bytes."""
        if not self._over:
            reset_on_close(self._tunnel)
            self._leave()

    def _leave(self) -> None:
        if not self._over:
            self._over = True
            self._to_write.clear()
            self._loop.close_later(self._tunnel)
