"""Which policies are about a workload: the mesh's, its namespace's, and those that select it by label.

A policy in the root namespace is about the mesh; any other about its own
namespace; with a selector only about the workloads there that carry all of its
labels.  All of them count, a narrow one does not replace a wide one (Istio's
AuthorizationPolicy, unlike its PeerAuthentication).

Policies with a selector are filed under one of its labels, so that a workload
is compared only with policies that ask for a label that it has.
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

from ca.manifests import AuthorizationPolicy
from ca.manifests.authorization import Action
from node_agent.model import ObjectName, Workload


class Scope(StrEnum):
    """How far a policy reaches; with a selector less far than its namespace."""

    MESH = "mesh"
    NAMESPACE = "namespace"
    WORKLOADS = "workloads"


class ScopedPolicy(NamedTuple):
    """A policy that is about a workload, and why."""

    policy: AuthorizationPolicy
    scope: Scope


_ORDER = (Action.AUDIT, Action.CUSTOM, Action.DENY, Action.ALLOW)
_Label = tuple[str, str]


class Scopes:
    """Every policy, by what it is about."""

    def __init__(self, root_namespace: str) -> None:
        self.root_namespace = root_namespace
        self._policies: dict[ObjectName, AuthorizationPolicy] = {}
        self._wide: dict[str, dict[str, AuthorizationPolicy]] = {}  # namespace: name: without selector
        self._narrow: dict[str, dict[_Label, dict[str, AuthorizationPolicy]]] = {}

    def __len__(self) -> int:
        return len(self._policies)

    def __iter__(self) -> Iterator[AuthorizationPolicy]:
        return iter(self._policies.values())

    def get(self, name: ObjectName) -> AuthorizationPolicy | None:
        return self._policies.get(name)

    def put(self, name: ObjectName, policy: AuthorizationPolicy | None) -> None:
        """Take in a new version of a policy, None for gone."""
        before = self._policies.pop(name, None)
        if before is not None:
            self._unfile(before)
        if policy is None:
            return
        self._policies[name] = policy
        if not policy.selector:
            self._wide.setdefault(name.namespace, {})[name.name] = policy
        else:
            by_label = self._narrow.setdefault(name.namespace, {})
            by_label.setdefault(_filed_under(policy), {})[name.name] = policy

    def _unfile(self, policy: AuthorizationPolicy) -> None:
        if not policy.selector:
            wide = self._wide[policy.namespace]
            del wide[policy.name]
            if not wide:
                del self._wide[policy.namespace]
            return
        by_label = self._narrow[policy.namespace]
        label = _filed_under(policy)
        del by_label[label][policy.name]
        if not by_label[label]:
            del by_label[label]
        if not by_label:
            del self._narrow[policy.namespace]

    def policies_for(self, workload: Workload) -> list[ScopedPolicy]:
        """Every policy that is about a workload: AUDIT, CUSTOM, DENY, ALLOW, each by namespace and name."""
        if not self._policies:
            return []
        found: list[ScopedPolicy] = []
        for namespace in dict.fromkeys((self.root_namespace, workload.name.namespace)):
            wide = Scope.MESH if namespace == self.root_namespace else Scope.NAMESPACE
            found += (ScopedPolicy(policy, wide) for policy in self._wide.get(namespace, {}).values())
            by_label = self._narrow.get(namespace)
            for label in workload.labels.items() if by_label else ():
                for policy in (by_label or {}).get(label, {}).values():
                    if policy.selector.items() <= workload.labels.items():
                        found.append(ScopedPolicy(policy, Scope.WORKLOADS))
        found.sort(key=_rank)
        return found


def _filed_under(policy: AuthorizationPolicy) -> _Label:
    return min(policy.selector.items())


def _rank(each: ScopedPolicy) -> tuple[int, str, str]:
    return _ORDER.index(each.policy.action), each.policy.namespace, each.policy.name
