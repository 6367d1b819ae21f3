"""Workload manifests: the processes of a cgroup, as what a pod is otherwise.

``workload.schema.json`` says what may be written and validates it; here is what
a schema can not say.  For everybody who asks who runs where, a Workload is a Pod
with a ``cgroup``: it has a service account, labels, addresses, ports and a node.
"""

import functools
import hashlib
import sys
from typing import Any, Final

from ca.manifests import schema
from ca.manifests.fields import FieldError, Fields
from ca.manifests.objects import CgroupPlace, ContainerPort, MachineWorkload, Pod

SCHEMA_FILE: Final = "workload.schema.json"


def parse_workload(top: Fields, labels: Any) -> MachineWorkload:
    """Read one object; ``labels`` are its own, checked already.

    Raises:
        FieldError: the schema does not allow it, or it contradicts itself.
    """
    schema.require_valid(_without_nulls(top.data), _schema(), top.path)
    metadata, spec = top.fields("metadata"), top.fields("spec")
    namespace, name = sys.intern(metadata.name("namespace", "default", label=True)), metadata.name("name")
    addresses = tuple(spec.ips("addresses"))
    if len({":" in each for each in addresses}) != len(addresses):
        raise spec.error("addresses", "at most one IPv4 and one IPv6 address; give each Workload its own")
    ports = tuple(
        ContainerPort(each.shared_text("name", ""), each.port("port")) for each in spec.list_of_fields("ports")
    )
    has_all = spec.flag("allPorts", False)
    if not ports and not has_all:
        raise spec.error("ports", "is empty; name the ports that it serves, or write allPorts: true")
    place = CgroupPlace(
        path=_path(spec),
        unit=spec.text("systemdUnit", ""),
        ports=None if has_all else tuple(sorted({each.port for each in ports})),
    )
    node, account = sys.intern(spec.name("nodeName")), sys.intern(spec.name("serviceAccountName", "default"))
    identity = (namespace, name, account, node, place.path, place.unit, *addresses)
    pod = Pod(
        namespace=namespace,
        name=name,
        uid="workload-" + hashlib.sha256("\n".join(identity).encode()).hexdigest()[:24],
        labels=labels,
        created=metadata.moment("creationTimestamp"),
        terminating=metadata.has("deletionTimestamp"),
        node_name=node,
        service_account=account,
        ports=ports,
        addresses=addresses,
        cgroup=place,
    )
    return MachineWorkload(pod=pod)


def _path(spec: Fields) -> str:
    path = spec.text("cgroup", "")
    if {".", ".."} & set(path.split("/")):
        raise FieldError((*spec.path, "cgroup"), "must not hold . or ..; write the path below the cgroup root")
    return path


def _without_nulls(data: Any) -> Any:
    """None counts as absent, as in the Kubernetes API."""
    if isinstance(data, dict):
        return {key: _without_nulls(value) for key, value in data.items() if value is not None}
    return data


@functools.cache
def _schema() -> schema.Schema:
    return schema.load(SCHEMA_FILE)
