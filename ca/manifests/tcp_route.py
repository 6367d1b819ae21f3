"""TCPRoute of the Gateway API, attached to a Service: a weighted split of its connections.

Of the Gateway API's TCPRoute what a mesh uses (GEP-1294: ``parentRefs`` of kind
Service): one rule, backends that are Services of the same namespace.  A route
for a Gateway is another program's.
"""

import sys
from dataclasses import dataclass
from typing import Final, NamedTuple

from ca.manifests.fields import Fields
from ca.manifests.names import ObjectKey
from ca.manifests.skipped import Skipped

_MAX_BACKENDS: Final = 16  # Gateway API: backendRefs has at most 16
_MAX_WEIGHT: Final = 1_000_000  # Gateway API: weight
_CORE_GROUPS: Final = ("", "core")


class ParentPort(NamedTuple):
    """A Service, and one of its ports; None: all of them."""

    service: str
    port: int | None


class Backend(NamedTuple):
    """A Service and port of the route's namespace; weight 0 gets nothing."""

    service: str
    port: int
    weight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TCPRoute:
    namespace: str
    name: str
    created: str = ""
    parents: tuple[ParentPort, ...]
    backends: tuple[Backend, ...]

    @property
    def key(self) -> ObjectKey:
        return ObjectKey("TCPRoute", self.namespace, self.name)


def parse_tcp_route(top: Fields) -> TCPRoute | Skipped:
    """Read one object; raises FieldError."""
    metadata, spec = top.fields("metadata"), top.fields("spec")
    namespace = sys.intern(metadata.name("namespace", "default", label=True))
    name = metadata.name("name")
    parents = tuple(
        ParentPort(_service(each, namespace), each.port("port") if each.has("port") else None)
        for each in spec.list_of_fields("parentRefs")
        if each.text("group", "gateway.networking.k8s.io") in _CORE_GROUPS and each.text("kind", "Gateway") == "Service"
    )
    if not parents:
        return Skipped(f'TCPRoute {namespace}/{name} has no parentRefs of kind Service (group: ""): it is a Gateway\'s')
    rules = spec.list_of_fields("rules")
    if len(rules) != 1:
        raise spec.error("rules", f"must hold exactly one rule, not {len(rules)}: TCP has nothing to choose one by")
    references = rules[0].list_of_fields("backendRefs")
    if not 1 <= len(references) <= _MAX_BACKENDS:
        raise rules[0].error("backendRefs", f"must hold 1 to {_MAX_BACKENDS} backends, not {len(references)}")
    return TCPRoute(
        namespace=namespace,
        name=name,
        created=metadata.moment("creationTimestamp"),
        parents=parents,
        backends=tuple(_backend(each, namespace) for each in references),
    )


def _backend(reference: Fields, namespace: str) -> Backend:
    reference.choice("group", _CORE_GROUPS, "")
    reference.choice("kind", ("Service",), "Service")
    weight = reference.raw("weight")
    if weight is None:
        weight = 1
    if isinstance(weight, bool) or not isinstance(weight, int) or not 0 <= weight <= _MAX_WEIGHT:
        raise reference.error("weight", f"must be a whole number from 0 to {_MAX_WEIGHT}")
    return Backend(_service(reference, namespace), reference.port("port"), weight)


def _service(reference: Fields, namespace: str) -> str:
    if reference.text("namespace", namespace) != namespace:
        raise reference.error(
            "namespace", f"must be {namespace}, the route's own: references into other namespaces are not supported"
        )
    return sys.intern(reference.name("name", label=True))
