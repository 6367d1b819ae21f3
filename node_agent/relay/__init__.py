"""Move the bytes: the relay loop and its pumps (loop.py has the theory of operation)."""

from node_agent.relay.ending import Ending, Outcome
from node_agent.relay.linger import reset_on_close
from node_agent.relay.meter import Meter
from node_agent.relay.relay import Pair, Relay
from node_agent.relay.settlement import Settlement
from node_agent.relay.shared_tunnel import SharedTunnel
from node_agent.relay.stream import Stream

__all__ = ["Ending", "Meter", "Outcome", "Pair", "Relay", "Settlement", "SharedTunnel", "Stream", "reset_on_close"]
