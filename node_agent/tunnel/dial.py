"""Make a new tunnel: connect, shake hands, judge who answered."""

import os
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple

import trio

from ca.spiffe import SpiffeId
from node_agent.config import TUNNEL_PORT
from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.tunnel.connect import connect
from node_agent.tunnel.label import server_name
from node_agent.tunnel.tunnel import Tunnel, Verify, require_protocol, shake_hands

CONNECTED: Final = "ringfence.tunnel.connected"
PROVEN: Final = "ringfence.tunnel.proven"
ASKED: Final = "ringfence.tunnel.asked"
"""Phases of a connection's way into a tunnel; the first two only if none was idle."""
PEER_DOES_NOT_ANSWER: Final = frozenset({CloseReason.PEER_UNAVAILABLE, CloseReason.HANDSHAKE_TIMEOUT})
"""Failures of a dial that the next one would only meet again: those who wait are told so, too."""


class TunnelKey(NamedTuple):
    """Connections with an equal key may follow each other in one tunnel.

    The source workload is part of it (its sockets live in its namespace, and
    the tunnel's source address vouches for the workload's), and so is the
    identity that the endpoint proved: a new pod with an old address has
    another key.
    """

    source_uid: str
    source: SpiffeId
    endpoint_ip: str
    expected: SpiffeId


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialler:
    """What a dial needs from the story; called only if there is no idle tunnel.

    ``make_socket`` returns an unconnected socket in the source's namespace,
    ``context`` presents the source's SVID ``serial``, which is valid until ``not_after``.
    ``connect_timeout_s`` and ``handshake_timeout_s`` count instead of the client's own.
    ``reached`` is told of the phases above, if somebody wants to know.
    """

    make_socket: Callable[[str], socket.socket]
    context: ssl.SSLContext
    not_after: datetime
    serial: int = 0
    connect_timeout_s: float | None = None
    handshake_timeout_s: float | None = None
    reached: Callable[[str], None] | None = None


class Dials:
    """Dials; every tunnel that it returns is the caller's."""

    def __init__(
        self,
        *,
        connect_timeout_s: float,
        handshake_timeout_s: float,
        verify: Verify,
        fault: Callable[[OSError], ConnectionFailure],
        on_handshake: Callable[[float], None],
    ) -> None:
        """``verify`` judges who answered; ``fault`` explains a TLS error; ``on_handshake`` gets the seconds of each."""
        self._connect_timeout_s = connect_timeout_s
        self._handshake_timeout_s = handshake_timeout_s
        self._verify = verify
        self._fault = fault
        self._on_handshake = on_handshake

    async def dial(self, key: TunnelKey, dialler: Dialler, label: str | None = None) -> Tunnel:
        """Return a tunnel to the endpoint of ``key``, which has proved what it must; raises ConnectionFailure.

        ``label``: of the shared tunnel that it is to take a stream from.
        """
        connect_timeout_s = dialler.connect_timeout_s or self._connect_timeout_s
        handshake_timeout_s = dialler.handshake_timeout_s or self._handshake_timeout_s
        sock = dialler.make_socket(key.endpoint_ip)
        try:
            await connect(sock, key.endpoint_ip, TUNNEL_PORT, timeout_s=connect_timeout_s)
        except ConnectionFailure as failure:
            sock.close()
            raise ConnectionFailure(CloseReason.PEER_UNAVAILABLE, failure.detail) from failure
        except BaseException:
            sock.close()
            raise
        owned: socket.socket = sock
        try:
            if dialler.reached is not None:
                dialler.reached(CONNECTED)
            began = trio.current_time()
            # An agent that ends has reset us by now; ``wrap_socket`` would raise that too, and leave a socket behind.
            if number := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(number, os.strerror(number))
            owned = tls = dialler.context.wrap_socket(
                sock,
                do_handshake_on_connect=False,
                suppress_ragged_eofs=False,
                server_hostname=None if label is None else server_name(label),  # said, and compared with nothing
            )
            with trio.fail_after(handshake_timeout_s):
                await shake_hands(tls)
            self._on_handshake(trio.current_time() - began)
            tunnel = self._checked(tls, key, dialler, label)
            if dialler.reached is not None:
                dialler.reached(PROVEN)
            return tunnel
        except trio.TooSlowError as error:
            owned.close()
            raise ConnectionFailure(
                CloseReason.HANDSHAKE_TIMEOUT,
                f"no TLS handshake with {key.endpoint_ip} within {handshake_timeout_s:g} s",
            ) from error
        except OSError as error:
            owned.close()
            raise self._fault(error) from error
        except BaseException:
            owned.close()
            raise

    def _checked(self, tls: ssl.SSLSocket, key: TunnelKey, dialler: Dialler, label: str | None) -> Tunnel:
        """Judge who answered; raises ConnectionFailure."""
        peer = self._verify(tls, datetime.now(UTC))
        require_protocol(tls)
        if peer.identity != key.expected:
            raise ConnectionFailure(
                CloseReason.IDENTITY_MISMATCH, f"{key.endpoint_ip} must be {key.expected} but proved {peer.identity}"
            )
        return Tunnel(
            tls,
            peer=peer,
            peer_ip=key.endpoint_ip,
            not_after=min(peer.not_after, dialler.not_after),
            fault=self._fault,
            own_serial=dialler.serial,
            label=label,
        )
