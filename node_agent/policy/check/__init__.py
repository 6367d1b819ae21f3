"""What is wrong with policies before they are in force: ``ringfence policy check``.

findings  what is said, how grave it is
alone     of a policy by itself
names     of names that nobody has (cluster: who there is)
overlap   of rules that others make superfluous (implied: what follows from what)

Pure, and no part of the agent: it is imported only by the command.
"""

from collections.abc import Iterable, Iterator

from ca.manifests import AuthorizationPolicy
from node_agent.policy.check import alone, names
from node_agent.policy.check.cluster import Cluster, KnownWorkload
from node_agent.policy.check.findings import Code, Finding, Severity
from node_agent.policy.check.overlap import Overlaps

__all__ = ["Cluster", "Code", "Finding", "KnownWorkload", "Severity", "check"]


def check(policies: Iterable[AuthorizationPolicy], cluster: Cluster) -> Iterator[Finding]:
    """Say what is wrong with each policy; those of the cluster count, but only these are checked."""
    checked = {(each.namespace, each.name): each for each in policies}
    others = {(each.namespace, each.name): each for each in cluster.policies}
    overlaps = Overlaps((others | checked).values(), root_namespace=cluster.root_namespace)
    for policy in checked.values():
        by_itself = list(alone.findings(policy, root_namespace=cluster.root_namespace))
        yield from by_itself
        yield from names.findings(policy, cluster)
        wrong = {each.path[:3] for each in by_itself if each.severity is Severity.ERROR}
        # A rule that says nothing is not compared with others: that would only be said twice.
        yield from (each for each in overlaps.findings(policy) if each.path not in wrong)
