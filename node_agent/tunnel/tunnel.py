"""One mutual-TLS connection between two agents, between and before relays.

While a tunnel is relaying, its socket belongs to the relay loop and nothing
here may be called.  Control frames are read exactly, never a byte further:
what follows them is the relay's.
"""

import socket
import ssl
import struct
from collections.abc import Callable
from datetime import datetime
from typing import Final, Protocol

import trio

from ca.spiffe import SpiffeId
from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.frames import ALPN, HEADER_BYTES, RESET_FRAME, FrameType, parse_control_header
from node_agent.stream_frames import SHARED_ALPN

_SURELY_TAKEN_BYTES: Final = 16 * 1024  # into the kernel's buffers of a connection, although nobody reads
_LINGER_RESET: Final = struct.pack("ii", 1, 0)  # socket(7)


class PeerCertificate(Protocol):
    """What the peer proved in the handshake."""

    @property
    def identity(self) -> SpiffeId: ...

    @property
    def serial(self) -> int: ...

    @property
    def not_after(self) -> datetime: ...


Verify = Callable[[ssl.SSLSocket, datetime], PeerCertificate]
"""Judges the peer of a finished handshake; raises ConnectionFailure."""


class TunnelLost(ConnectionFailure):
    """The tunnel ended where it should not have; ``within_frame`` when not even between two frames."""

    def __init__(self, detail: str, *, within_frame: bool = False) -> None:
        super().__init__(CloseReason.TUNNEL_LOST, detail)
        self.within_frame = within_frame


class Tunnel:
    """Owns ``sock`` until ``close``, except while it is lent to the relay."""

    __slots__ = (
        "_fault",
        "_is_lent",
        "_is_used",
        "_tls",
        "label",
        "leftover",
        "may_be_held",
        "not_after",
        "own_serial",
        "peer",
        "peer_ip",
        "sock",
    )

    def __init__(
        self,
        sock: ssl.SSLSocket,
        *,
        peer: PeerCertificate,
        peer_ip: str,
        not_after: datetime,
        fault: Callable[[OSError], ConnectionFailure],
        own_serial: int = 0,
        label: str | None = None,
    ) -> None:
        """``not_after``: until when both ends' certificates are valid; ``fault`` explains a TLS error.

        ``own_serial`` is that of the certificate that was presented to the peer; ``label`` that of the shared
        tunnel for whose streams we have dialled it (label.py).
        """
        self.sock = sock
        self._tls = sock._sslobj  # type: ignore[attr-defined]  # noqa: SLF001  # spares the checks of SSLSocket.recv
        self.peer = peer
        self.peer_ip = peer_ip
        self.not_after = not_after
        self.own_serial = own_serial
        self.label = label
        self.leftover = b""
        self.may_be_held = False
        self._fault = fault
        self._is_lent = False
        self._is_used = False

    @property
    def protocol(self) -> str | None:
        """The version that both ends agreed on (ALPN)."""
        return self.sock.selected_alpn_protocol()

    def lend(self) -> ssl.SSLSocket:
        """Hand ``sock`` to the relay; it closes it unless the connection ends in order."""
        self._is_lent = True
        return self.sock

    def take_back(self, leftover: bytes, *, sent_bytes: int = 0) -> None:
        """The connection has ended on both sides; ``leftover`` was read behind its end.

        ``sent_bytes`` were sent to the peer's application.  One that has sent
        its own end and does not read holds the tunnel at the other side, behind
        bytes that we do not see; ``may_be_held`` is whether there are enough for
        that.
        """
        self.may_be_held = sent_bytes > _SURELY_TAKEN_BYTES
        self._is_lent = False
        self._is_used = True
        self.leftover = leftover

    def close(self) -> None:
        """Close ``sock`` if it is not lent."""
        if not self._is_lent:
            self.sock.close()

    def abort(self) -> None:
        """Close by RST, because the workload is gone: after a FIN the kernel would hold its namespace for a minute."""
        if not self._is_lent:
            try:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            except OSError:
                pass
            self.sock.close()

    def is_quiet(self) -> bool:
        """Whether an idle tunnel is still usable: connected, and the peer has said nothing."""
        try:
            socket.socket.recv(self.sock, 1, socket.MSG_PEEK)
        except BlockingIOError:
            return not self.leftover
        except OSError:
            return False
        return False  # bytes or EOF: an idle peer says nothing but goodbye

    async def send(self, frame: bytes) -> None:
        """Send one control frame; raises TunnelLost."""
        while True:
            try:
                self._tls.write(frame)
                return
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(self.sock)
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(self.sock)
            except OSError as error:
                raise self._lost(self._last_words() or error) from error

    def _last_words(self) -> ssl.SSLError | None:
        """The alert of a peer that hung up before we could write: it lies in the receive queue still."""
        try:
            self._tls.read(1)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return None
        except ssl.SSLError as alert:
            return alert
        except OSError:
            return None
        return None

    async def read_control(self, expected: FrameType) -> bytes:
        """Read one frame of the ``expected`` type and return its payload; raises as ``read_one_of``."""
        return (await self.read_one_of(expected))[1]

    async def read_one_of(self, *expected: FrameType) -> tuple[FrameType, bytes]:
        """Read one frame of an ``expected`` type; returns its type and payload.

        Raises TunnelLost at its end, RemoteProtocolError on anything else.
        """
        header = await self._read_exactly(HEADER_BYTES)
        if header == RESET_FRAME and self._is_used:
            # Of the connection before this one: it crossed the frame that ended that one for us.
            header = await self._read_exactly(HEADER_BYTES)
        if self._is_used and header[0] == FrameType.RESET and header != RESET_FRAME:
            # Of the connection before this one, too: an agent cut it, and closes the tunnel.
            raise TunnelLost("the peer agent ended the tunnel with its last connection")
        kind, length = parse_control_header(header, *expected)
        return kind, await self._read_exactly(length, within_frame=True) if length else b""

    async def _read_exactly(self, size: int, *, within_frame: bool = False) -> bytes:
        data, self.leftover = self.leftover[:size], self.leftover[size:]
        while len(data) < size:
            try:
                if not self._tls.pending():
                    await trio.lowlevel.wait_readable(self.sock)
                more = self._tls.read(size - len(data))
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(self.sock)
                continue
            except OSError as error:
                raise self._lost(error, within_frame=within_frame or bool(data)) from error
            if not more:
                raise TunnelLost("the peer agent closed the tunnel", within_frame=within_frame or bool(data))
            data += more
        return data

    def _lost(self, error: OSError, *, within_frame: bool = False) -> ConnectionFailure:
        """A TLS 1.3 server judges our certificate after our handshake is done: its alert arrives here."""
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return self._fault(error)
        return TunnelLost(f"the tunnel broke: {error}", within_frame=within_frame)


def require_protocol(sock: ssl.SSLSocket) -> None:
    """Refuse a peer that did not agree on our protocol; raises ConnectionFailure.

    RFC 7301 section 3.2 wants a server without a common protocol to send an
    alert; ``ssl`` goes on without one instead, and the check falls to us.
    """
    if sock.selected_alpn_protocol() not in (ALPN, SHARED_ALPN):
        raise ConnectionFailure(
            CloseReason.HANDSHAKE_FAILED, f"no common protocol: the peer does not speak {ALPN} (ALPN, RFC 7301)"
        )


async def shake_hands(sock: ssl.SSLSocket) -> None:
    """Complete the TLS handshake; raises OSError (ssl.SSLError among them)."""
    while True:
        try:
            sock.do_handshake()
            return
        except ssl.SSLWantReadError:
            await trio.lowlevel.wait_readable(sock)
        except ssl.SSLWantWriteError:
            await trio.lowlevel.wait_writable(sock)
