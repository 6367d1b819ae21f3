"""The destination's end: prove who dials us, then hear what each connection wants."""

import socket
import ssl
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import trio

from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.frames import FrameType, Open, decode_open
from node_agent.stream_frames import SHARED_ALPN, decode_attach, decode_share
from node_agent.tunnel.label import MOST_PEEKED_BYTES, find_label
from node_agent.tunnel.tunnel import Tunnel, Verify, require_protocol, shake_hands

_IDLE_S: Final = 300.0
"""How long a tunnel may wait for its next OPEN; longer than the client's, which closes first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The tunnel is to carry many connections at a time."""

    token: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Attach:
    """The tunnel is to be the own one of a connection in a shared tunnel."""

    token: bytes
    stream_id: int


class PendingHandshakes:
    """Bounds the connections that have proved nothing yet.

    Over the bound the oldest is dropped, not the newest refused: a real agent
    is through in milliseconds, so the oldest is the one that sends nothing.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._pending: OrderedDict[trio.CancelScope, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pending)

    def enter(self, scope: trio.CancelScope) -> None:
        self._pending[scope] = None
        if len(self._pending) > self._most:
            oldest, _ = self._pending.popitem(last=False)
            oldest.cancel()

    def leave(self, scope: trio.CancelScope) -> None:
        self._pending.pop(scope, None)


class TunnelServer:
    """Accepts tunnels for any workload of the node; shared, stateless but for the bound."""

    def __init__(
        self,
        *,
        handshake_timeout_s: float,
        open_timeout_s: float,
        pending: PendingHandshakes,
        verify: Verify,
        fault: Callable[[OSError], ConnectionFailure],
        on_handshake: Callable[[float], None] = lambda _: None,
    ) -> None:
        """``on_handshake`` gets the seconds of each, counted from the client's first byte."""
        self._handshake_timeout_s = handshake_timeout_s
        self._open_timeout_s = open_timeout_s
        self._pending = pending
        self._verify = verify
        self._fault = fault
        self._on_handshake = on_handshake

    async def accept(
        self,
        sock: socket.socket,
        peer_ip: str,
        context: Callable[[], Awaitable[tuple[ssl.SSLContext, datetime]]],
        *,
        waited_s: float = 0.0,
        pass_on: Callable[[str], bool] | None = None,
    ) -> Tunnel | None:
        """Turn an accepted connection into a tunnel whose peer is proven.

        Takes ``sock`` over.  ``context`` is awaited only when the peer has
        begun to speak, so a silent connection costs no TLS state.  ``waited_s``
        have passed since it was accepted.  ``pass_on`` gets the label that the
        peer has named, if it has; when it returns True the socket is somebody
        else's, and None is returned.  Raises ConnectionFailure; the socket is
        closed then.
        """
        owned: socket.socket = sock
        try:
            with trio.CancelScope(deadline=trio.current_time() + self._handshake_timeout_s - waited_s) as scope:
                self._pending.enter(scope)
                try:
                    await trio.lowlevel.wait_readable(sock)
                    if pass_on is not None and (label := _peek_label(sock)) is not None and pass_on(label):
                        return None
                    began = trio.current_time()
                    server_context, not_after = await context()
                    owned = tls = server_context.wrap_socket(
                        sock, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=False
                    )
                    await shake_hands(tls)
                    self._on_handshake(trio.current_time() - began)
                finally:
                    self._pending.leave(scope)
            if scope.cancelled_caught:
                raise self._too_late(scope)
            return self._checked(tls, peer_ip, not_after)
        except OSError as error:
            owned.close()
            raise self._fault(error) from error
        except BaseException:
            owned.close()
            raise

    def _too_late(self, scope: trio.CancelScope) -> ConnectionFailure:
        if trio.current_time() < scope.deadline:
            return ConnectionFailure(CloseReason.OVERLOADED, "dropped as the oldest of too many unfinished handshakes")
        return ConnectionFailure(
            CloseReason.HANDSHAKE_TIMEOUT, f"no TLS handshake within {self._handshake_timeout_s:g} s"
        )

    def _checked(self, tls: ssl.SSLSocket, peer_ip: str, not_after: datetime) -> Tunnel:
        peer = self._verify(tls, datetime.now(UTC))
        require_protocol(tls)
        if peer.identity.service_account is None:
            raise ConnectionFailure(
                CloseReason.CERTIFICATE_INVALID, f"{peer.identity} is no workload's: a tunnel is between workloads"
            )
        return Tunnel(tls, peer=peer, peer_ip=peer_ip, not_after=min(peer.not_after, not_after), fault=self._fault)

    def patience_s(self, *, first: bool) -> float:
        """How long to wait for a tunnel's next connection, or for its ``first``."""
        return self._open_timeout_s if first else _IDLE_S

    async def next_request(self, tunnel: Tunnel, *, first: bool) -> Open | Share | Attach:
        """Wait for what the source wants next of ``tunnel``; the caller bounds how long.

        Raises ConnectionFailure: TUNNEL_LOST when the peer closed it, which
        between two connections is the ordinary end.
        """
        expected = [FrameType.OPEN]
        if tunnel.protocol == SHARED_ALPN:
            expected.append(FrameType.ATTACH)
            if first:
                expected.append(FrameType.SHARE)
        kind, payload = await tunnel.read_one_of(*expected)
        match kind:
            case FrameType.SHARE:
                return Share(token=decode_share(payload))
            case FrameType.ATTACH:
                token, stream_id = decode_attach(payload)
                return Attach(token=token, stream_id=stream_id)
            case _:
                return decode_open(payload)


def _peek_label(sock: socket.socket) -> str | None:
    """The label in what has come so far, which stays where it is; raises OSError."""
    try:
        return find_label(sock.recv(MOST_PEEKED_BYTES, socket.MSG_PEEK))
    except BlockingIOError:
        return None
