"""Every AuthorizationPolicy in force: whom it is about, what it did, what is wrong with it."""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from ca.manifests import AuthorizationPolicy
from node_agent.explanation.places import UnknownPlace
from node_agent.explanation.ways import Row
from node_agent.model import ObjectName
from node_agent.policy import PolicyEngine
from node_agent.proxy.policy_counts import AUDITS, DENIALS, DRY_RUN_DENIALS
from node_agent.registry import Registry
from node_agent.registry.store import DEFAULT_ROOT_NAMESPACE
from node_agent.telemetry.metrics import FamilyReading

_COUNTERS: Final = (DENIALS, DRY_RUN_DENIALS, AUDITS)
_MESH: Final = "mesh"
_NAMESPACE: Final = "namespace"
_WORKLOADS: Final = "workloads"
_A_STEP: Final = 100  # workloads or policies: well under a millisecond


class Policies:
    """``families`` are the metrics of the whole agent; ``file_of`` knows where policies are written."""

    def __init__(
        self,
        *,
        node: str,
        registry: Registry,
        engine: PolicyEngine,
        families: Callable[[], Iterable[FamilyReading]],
        file_of: Callable[[], Callable[[str], str | None]],
    ) -> None:
        self._node = node
        self._registry = registry
        self._engine = engine
        self._families = families
        self._file_of = file_of

    def rows(self, namespace: str | None = None) -> Iterator[Row | None]:
        """One row a policy, by name, and None now and then: others may have a turn.

        Raises UnknownPlace, before the first row, for a namespace that has no policies, nor workloads.
        """
        policies = sorted(
            (each for each in self._engine.policies() if namespace in (None, each.namespace)),
            key=lambda each: (each.namespace, each.name),
        )
        if namespace is not None and not policies and not self._is_namespace(namespace):
            raise UnknownPlace(f"no namespace {namespace!r}: it has neither policies nor workloads")
        return self._rows(policies)

    def _rows(self, policies: list[AuthorizationPolicy]) -> Iterator[Row | None]:
        local: dict[str, int] = {}
        everywhere: dict[str, int] = {}
        for number, workload in enumerate(list(self._registry.workloads()) if policies else (), 1):
            if not number % _A_STEP:
                yield None
            if workload.enrolled:  # nobody judges connections to others
                for each in self._engine.policies_for(workload):
                    name = str(each.policy)
                    everywhere[name] = everywhere.get(name, 0) + 1
                    if workload.node == self._node:
                        local[name] = local.get(name, 0) + 1
        counts = self._counts()
        file_of = self._file_of()
        problems = self._problems()
        for number, policy in enumerate(policies, 1):
            if not number % _A_STEP:
                yield None
            name = str(policy)
            yield {
                "name": policy.name,
                "namespace": policy.namespace,
                "file": file_of(name),
                "action": str(policy.action),
                "scope": self._scope(policy.namespace, bool(policy.selector)),
                "selector": dict(policy.selector),
                "rules": len(policy.rules),
                "dry_run": policy.dry_run,
                "local_workloads": local.get(name, 0),
                "workloads": everywhere.get(name, 0),
                "denials": counts[DENIALS].get(name, 0),
                "dry_run_denials": counts[DRY_RUN_DENIALS].get(name, 0),
                "audits": counts[AUDITS].get(name, 0),
                "problems": problems.get(name, []),
            }

    def _scope(self, namespace: str, is_narrow: bool) -> str:
        if is_narrow:
            return _WORKLOADS
        return _MESH if namespace == DEFAULT_ROOT_NAMESPACE else _NAMESPACE

    def _problems(self) -> dict[str, list[str]]:
        """What is wrong with policies, by name."""
        found: dict[str, list[str]] = {}
        for line in self._registry.faults():
            kind, _, rest = line.partition(" ")
            if kind == "AuthorizationPolicy":
                found.setdefault(rest.partition(":")[0], []).append(line)
        return found

    def _counts(self) -> dict[str, dict[str, float]]:
        counts: dict[str, dict[str, float]] = {name: {} for name in _COUNTERS}
        for family in self._families():
            if family.name in counts:
                counts[family.name] = {sample.values[0]: int(sample.value) for sample in family.samples}
        return counts

    def _is_namespace(self, namespace: str) -> bool:
        return any(ObjectName(*each.name).namespace == namespace for each in self._registry.workloads())
