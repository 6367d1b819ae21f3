"""How often which AuthorizationPolicy had its way: for Prometheus and for ``ringfence policies``."""

from collections.abc import Iterable
from typing import Final

from node_agent.errors import ConnectionFailure, PolicyDenied
from node_agent.telemetry.metrics import Metrics

NO_POLICY: Final = "none"
"""The label of denials that no policy made: none allowed it, or it could not be judged."""

DENIALS: Final = "ringfence_policy_denials_total"
DRY_RUN_DENIALS: Final = "ringfence_policy_dry_run_denials_total"
AUDITS: Final = "ringfence_policy_audits_total"

_OTHER: Final = "other"
_MAX_POLICIES: Final = 1_000  # label values of each of the three; a policy that is gone keeps its own


class _Counter:
    """Counts by policy, a bounded number of them."""

    def __init__(self, metrics: Metrics, name: str, help_text: str) -> None:
        self._counts: dict[tuple[str, ...], int] = {}
        metrics.counter(name, help_text, lambda: self._counts, labels=("policy",))

    def add(self, policy: str) -> None:
        label = (policy,)
        if label not in self._counts and len(self._counts) >= _MAX_POLICIES:
            label = (_OTHER,)
        self._counts[label] = self._counts.get(label, 0) + 1


class PolicyCounts:
    """The counters of one process."""

    def __init__(self, metrics: Metrics) -> None:
        self._denials = _Counter(metrics, DENIALS, "Connections refused or cut by an AuthorizationPolicy.")
        self._dry_run_denials = _Counter(
            metrics, DRY_RUN_DENIALS, "Connections that a policy on dry run would have refused or cut."
        )
        self._audits = _Counter(metrics, AUDITS, "Connections that an AUDIT policy matches.")

    def denied(self, failure: ConnectionFailure) -> None:
        """A connection was refused or cut here; PeerAuthentication's refusals are not policies'."""
        if isinstance(failure, PolicyDenied):
            self._denials.add(failure.policy or NO_POLICY)

    def would_deny(self, policy: str) -> None:
        self._dry_run_denials.add(policy)

    def audited(self, policies: Iterable[str]) -> None:
        for policy in policies:
            self._audits.add(policy)
