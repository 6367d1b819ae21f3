"""Step 4: decide whether this source may reach this destination.

request   one connection, as its destination sees it
decision  allowed or denied, by which policy and rule, and what dry runs would have changed
engine    every policy, found by destination: PolicyEngine
"""

from node_agent.policy.decision import Decision, DryRun, PolicyRule
from node_agent.policy.engine import PolicyEngine
from node_agent.policy.request import Request

__all__ = ["Decision", "DryRun", "PolicyEngine", "PolicyRule", "Request"]
