"""Step 4: decide whether this source may reach this destination.

request         one connection, as its destination sees it
decision        allowed or denied, by which policy and rule, and what dry runs would have changed
engine          every policy, found by destination: PolicyEngine
scopes          which policies are about a workload
compiled        rules made ready to decide; prefixes, identity_index, rule_index: found without looking at each
destination     the policies of one destination, and their order
considered      every policy and rule with what keeps it from matching (matching): for people
"""

from node_agent.policy.considered import Considered, ConsideredRule, Explanation
from node_agent.policy.decision import Decision, DryRun, PolicyRule
from node_agent.policy.engine import PolicyEngine
from node_agent.policy.matching import Mismatch
from node_agent.policy.request import Request
from node_agent.policy.scopes import Scope, ScopedPolicy

__all__ = [
    "Considered",
    "ConsideredRule",
    "Decision",
    "DryRun",
    "Explanation",
    "Mismatch",
    "PolicyEngine",
    "PolicyRule",
    "Request",
    "Scope",
    "ScopedPolicy",
]
