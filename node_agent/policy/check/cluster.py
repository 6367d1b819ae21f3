"""What exists: the namespaces, accounts and workloads that policies may be about, as far as they are known."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

from ca.manifests import AuthorizationPolicy
from ca.manifests.authorization import Attribute
from node_agent.policy.compiled import Patterns


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownWorkload:
    """``identity`` is without ``spiffe://``."""

    namespace: str
    name: str
    service_account: str
    identity: str
    labels: Mapping[str, str] = field(hash=False)


class Cluster:
    """What is known to exist; nothing about others' trust domains.

    ``policies`` are in force beside those that are checked.
    """

    def __init__(
        self,
        *,
        workloads: Iterable[KnownWorkload] = (),
        namespaces: Iterable[str] = (),
        trust_domain: str = "cluster.local",
        root_namespace: str = "istio-system",
        policies: Iterable[AuthorizationPolicy] = (),
    ) -> None:
        self.workloads = tuple(workloads)
        self.trust_domain = trust_domain
        self.root_namespace = root_namespace
        self.policies = tuple(policies)
        self.namespaces = frozenset(namespaces) | {each.namespace for each in self.workloads}
        self._names: dict[Attribute, frozenset[str]] = {
            Attribute.PRINCIPAL: frozenset(each.identity for each in self.workloads),
            Attribute.NAMESPACE: self.namespaces,
            Attribute.SERVICE_ACCOUNT: frozenset(f"{each.namespace}/{each.service_account}" for each in self.workloads),
        }

    @property
    def is_known(self) -> bool:
        """Whether anything is known, so that what is not known can be said not to exist."""
        return bool(self.workloads or self.namespaces)

    @property
    def trust_domains(self) -> frozenset[str]:
        """Those that workloads here belong to."""
        return frozenset(each.identity.partition("/")[0] for each in self.workloads) | {self.trust_domain}

    def has(self, attribute: Attribute, pattern: str) -> bool:
        """Whether somebody fits."""
        names = self._names[attribute]
        if "*" not in pattern:
            return pattern in names
        patterns = Patterns((pattern,))
        return any(map(patterns.fit, names))

    def suggestion(self, attribute: Attribute, name: str) -> str:
        """``; did you mean x?``, or nothing."""
        close = get_close_matches(name, self._names[attribute], n=1, cutoff=0.7)
        return f"; did you mean {close[0]}?" if close else ""

    def selects(self, policy: AuthorizationPolicy) -> bool:
        """Whether a policy is about some workload."""
        everywhere = policy.namespace == self.root_namespace
        return any(
            (everywhere or each.namespace == policy.namespace) and policy.selector.items() <= each.labels.items()
            for each in self.workloads
        )
