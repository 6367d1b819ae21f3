"""Mutual TLS to the peer agent: frames, pool, client, server (docs/tunnel-protocol.md)."""

from node_agent.tunnel.client import TunnelClient
from node_agent.tunnel.connect import connect
from node_agent.tunnel.dial import Dialler, TunnelKey
from node_agent.tunnel.label import label_of
from node_agent.tunnel.server import Attach, PendingHandshakes, Share, TunnelServer
from node_agent.tunnel.shared import SharedConnection
from node_agent.tunnel.tunnel import Tunnel, TunnelLost

__all__ = [
    "Attach",
    "Dialler",
    "PendingHandshakes",
    "Share",
    "SharedConnection",
    "Tunnel",
    "TunnelClient",
    "TunnelKey",
    "TunnelLost",
    "TunnelServer",
    "connect",
    "label_of",
]
