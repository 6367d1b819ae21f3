"""What a TrafficPolicy wants of connections that only the agent can do.

Sans-I/O.  The kernel chooses among endpoints by weights, and nothing else: on the
same-node lane (lane_grants.py) and at connect (connect_rules.py).
"""

from typing import Final

from ca.manifests.traffic import LoadBalancing, Timeouts, Traffic

_ANY_TIME: Final = Timeouts()


def what_only_the_agent_does(traffic: Traffic, *, may_check_health: bool) -> str:
    """The first thing that keeps connections with the agent, for people; empty if there is none.

    ``may_check_health``: active checks are made all the same.
    """
    balancing = traffic.balancing
    if traffic.restrains:
        return "limits, rate limits or faults"
    if traffic.timeouts != _ANY_TIME:
        return "timeouts of its own"
    if traffic.health_check is not None and not may_check_health:
        return "health checks"
    if traffic.outlier.latency_factor:
        return "ejection by latency"
    if balancing.slow_start_s:
        return "slow start"
    if balancing.policy is LoadBalancing.CONSISTENT_HASH:
        return "consistent hashing"
    return ""
