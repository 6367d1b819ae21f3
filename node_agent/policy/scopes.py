"""Which policies are about a workload: the mesh's, its namespace's, and those that select it by label.

A policy in the root namespace is about the mesh; any other about its own
namespace; with a selector only about the workloads there that carry all of its
labels.  All of them count, a narrow one does not replace a wide one (Istio's
AuthorizationPolicy, unlike its PeerAuthentication).

Policies with a selector are filed under one of its labels, so that a workload
is compared only with policies that ask for a label that it has.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from enum import StrEnum
from operator import itemgetter
from typing import Final, NamedTuple

from ca.manifests import AuthorizationPolicy
from ca.manifests.authorization import Action
from node_agent.model import ObjectName, Workload


class Scope(StrEnum):
    """How far a policy reaches; with a selector less far than its namespace."""

    MESH = "mesh"
    NAMESPACE = "namespace"
    WORKLOADS = "workloads"


class ScopedPolicy(NamedTuple):
    """A policy that is about a workload, and why.  Sorts as policies are asked."""

    rank: tuple[int, ObjectName]
    policy: AuthorizationPolicy
    scope: Scope

    @property
    def name(self) -> ObjectName:
        return self.rank[1]


_ORDER: Final = {Action.AUDIT: 0, Action.CUSTOM: 1, Action.DENY: 2, Action.ALLOW: 3}
_Label = tuple[str, str]
_BY_RANK: Final = itemgetter(0)


class Scopes:
    """Every policy, by what it is about."""

    def __init__(self, root_namespace: str) -> None:
        self.root_namespace = root_namespace
        self._policies: dict[ObjectName, ScopedPolicy] = {}
        self._wide: dict[str, list[ScopedPolicy]] = {}  # by namespace, sorted: without selector
        self._narrow: dict[str, dict[_Label, dict[ObjectName, ScopedPolicy]]] = {}

    def __len__(self) -> int:
        return len(self._policies)

    def __iter__(self) -> Iterator[AuthorizationPolicy]:
        return (each.policy for each in self._policies.values())

    def put(self, name: ObjectName, policy: AuthorizationPolicy | None) -> None:
        """Take in a new version of a policy, None for gone."""
        before = self._policies.pop(name, None)
        if before is not None:
            self._unfile(before)
        if policy is None:
            return
        wide = Scope.MESH if name.namespace == self.root_namespace else Scope.NAMESPACE
        scoped = ScopedPolicy((_ORDER[policy.action], name), policy, Scope.WORKLOADS if policy.selector else wide)
        self._policies[name] = scoped
        if not policy.selector:
            insort(self._wide.setdefault(name.namespace, []), scoped, key=_BY_RANK)
        else:
            by_label = self._narrow.setdefault(name.namespace, {})
            by_label.setdefault(_filed_under(policy), {})[name] = scoped

    def _unfile(self, scoped: ScopedPolicy) -> None:
        namespace = scoped.name.namespace
        if not scoped.policy.selector:
            wide = self._wide[namespace]
            del wide[bisect_left(wide, scoped.rank, key=_BY_RANK)]
            if not wide:
                del self._wide[namespace]
            return
        by_label = self._narrow[namespace]
        label = _filed_under(scoped.policy)
        del by_label[label][scoped.name]
        if not by_label[label]:
            del by_label[label]
        if not by_label:
            del self._narrow[namespace]

    def policies_for(self, workload: Workload) -> list[ScopedPolicy]:
        """Every policy that is about a workload: AUDIT, CUSTOM, DENY, ALLOW, each by namespace and name."""
        found: list[ScopedPolicy] = []
        for namespace in dict.fromkeys((self.root_namespace, workload.name.namespace)):
            found += self._wide.get(namespace, ())
            by_label = self._narrow.get(namespace)
            for label in workload.labels.items() if by_label else ():
                for each in (by_label or {}).get(label, {}).values():
                    if each.policy.selector.items() <= workload.labels.items():
                        found.append(each)
        found.sort(key=_BY_RANK)  # what is wide is sorted already: nearly free
        return found


def _filed_under(policy: AuthorizationPolicy) -> _Label:
    return min(policy.selector.items())
