"""Move the bytes: the relay loop and its pumps (loop.py has the theory of operation)."""

from node_agent.relay.ending import Ending, Outcome, reset_on_close
from node_agent.relay.relay import Pair, Relay

__all__ = ["Ending", "Outcome", "Pair", "Relay", "reset_on_close"]
