"""Every AuthorizationPolicy in force: whom it is about, what it did, what is wrong with it."""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

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

    def rows(self, namespace: str | None = None) -> Iterator[Row]:
        """One row a policy, by name; raises UnknownPlace for a namespace that has none, nor workloads."""
        policies = sorted(
            (each for each in self._engine.policies() if namespace in (None, each.namespace)),
            key=lambda each: (each.namespace, each.name),
        )
        if namespace is not None and not policies and not self._is_namespace(namespace):
            raise UnknownPlace(f"no namespace {namespace!r}: it has neither policies nor workloads")
        local = self._selected(local=True)
        everywhere = self._selected(local=False)
        counts = self._counts()
        file_of = self._file_of()
        faults = list(self._registry.faults())
        for policy in policies:
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
                "problems": [line for line in faults if line.startswith(f"AuthorizationPolicy {name}:")],
            }

    def _scope(self, namespace: str, is_narrow: bool) -> str:
        if is_narrow:
            return _WORKLOADS
        return _MESH if namespace == DEFAULT_ROOT_NAMESPACE else _NAMESPACE

    def _selected(self, *, local: bool) -> dict[str, int]:
        """How many enrolled workloads each policy is about: nobody judges connections to others."""
        found: dict[str, int] = {}
        workloads = self._registry.workloads_on(self._node) if local else self._registry.workloads()
        for workload in workloads:
            if workload.enrolled:
                for each in self._engine.policies_for(workload):
                    found[str(each.policy)] = found.get(str(each.policy), 0) + 1
        return found

    def _counts(self) -> dict[str, dict[str, float]]:
        counts: dict[str, dict[str, float]] = {name: {} for name in _COUNTERS}
        for family in self._families():
            if family.name in counts:
                counts[family.name] = {sample.values[0]: int(sample.value) for sample in family.samples}
        return counts

    def _is_namespace(self, namespace: str) -> bool:
        return any(ObjectName(*each.name).namespace == namespace for each in self._registry.workloads())
