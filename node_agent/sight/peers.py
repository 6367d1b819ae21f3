"""Mutual TLS between the agents of two nodes, each with its node certificate.

Strict and closed: without a node certificate of our own there is no context and
so no connection; a peer is believed if its chain ends at a root of *our* trust
domain, its dates are right, nothing of it is revoked, and it names a node.  The
SVID of a workload opens nothing here, also not that of a pod on the same node.
"""

import ssl
from collections.abc import Callable
from datetime import datetime
from typing import Final

import trio

from ca.spiffe import SpiffeId
from ca.tls import KeyAndChain, check_time_ourselves, strict_context
from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.identity import handshake_failure, peer_identity
from node_agent.identity.trust import TrustStore

ALPN: Final = "ringfence-sight/1"

TlsStream = trio.SSLStream[trio.abc.Stream]


class NodePeers:
    """Makes contexts of what the node holds now, and judges who is at the other end."""

    def __init__(
        self, *, own: Callable[[], KeyAndChain | None], trust: TrustStore, utc_now: Callable[[], datetime]
    ) -> None:
        """``own`` is the node certificate of now, None while there is none that is valid."""
        self._own = own
        self._trust = trust
        self._utc_now = utc_now
        self._made: dict[bool, tuple[object, ssl.SSLContext]] = {}

    async def accept(self, stream: trio.abc.Stream) -> TlsStream:
        """Shake hands with an agent that has connected to us.

        Raises:
            ConnectionFailure: it is not one, or we have no certificate; nothing was said to it but TLS.
        """
        tls = trio.SSLStream(stream, self._context(server_side=True), server_side=True, https_compatible=True)
        peer = await self._judged(tls)
        if peer.node_name is None:
            raise ConnectionFailure(CloseReason.IDENTITY_MISMATCH, f"{peer} is not the identity of a node")
        return tls

    async def dial(self, stream: trio.abc.Stream, *, node: str) -> TlsStream:
        """Shake hands with the agent of ``node``, to which ``stream`` is supposed to lead.

        Raises:
            ConnectionFailure: it is somebody else, or can not be trusted; nothing was asked.
        """
        expected = SpiffeId.node(self._trust.trust_domain, node)
        context = self._context(server_side=False)
        tls = trio.SSLStream(stream, context, server_hostname=None, https_compatible=True)
        peer = await self._judged(tls)
        if peer != expected:
            raise ConnectionFailure(CloseReason.IDENTITY_MISMATCH, f"it is {peer}, not {expected}")
        return tls

    async def _judged(self, tls: TlsStream) -> SpiffeId:
        try:
            await tls.do_handshake()
        except trio.BrokenResourceError as error:
            if isinstance(error.__cause__, ssl.SSLError):
                raise handshake_failure(error.__cause__) from error
            raise ConnectionFailure(CloseReason.HANDSHAKE_FAILED, "it broke off the handshake") from error
        inside = getattr(tls, "_ssl_object")  # noqa: B009 - trio hands out everything but the chain
        peer = peer_identity(inside, bundles=self._trust.anchors, at=self._utc_now())
        if peer.identity.trust_domain != self._trust.trust_domain:
            raise ConnectionFailure(CloseReason.TRUST_REMOVED, f"{peer.identity} is of another trust domain")
        self._trust.require_trusted(peer.identity, peer.serial)
        if tls.selected_alpn_protocol() != ALPN:
            raise ConnectionFailure(CloseReason.PROTOCOL_ERROR, f"it does not speak {ALPN}")
        return peer.identity

    def _context(self, *, server_side: bool) -> ssl.SSLContext:
        own = self._own()
        if own is None:
            raise ConnectionFailure(CloseReason.IDENTITY_UNAVAILABLE, "this node has no valid certificate")
        roots = self._trust.roots()
        known = self._made.get(server_side)
        if known is not None and known[0] == (own, roots):
            return known[1]
        context = strict_context(server_side=server_side, roots=roots, alpn=ALPN, own=own)
        check_time_ourselves(context)
        self._made[server_side] = ((own, roots), context)
        return context
