"""Workload manifests: who runs in which cgroup, and what the CA, the registry and an API server make of it."""

from typing import Any

import jsonschema
import pytest
import yaml

from ca.authority.errors import Refusal
from ca.authority.placement import Placements
from ca.manifests import MachineWorkload, ManifestError, parse_manifests
from ca.manifests.schema import load
from ca.spiffe import SpiffeId
from crdkit import WORKLOADS
from node_agent.model import Cgroup, ObjectName
from node_agent.registry import Registry, Update

_TEXT = """\
apiVersion: ringfence.io/v1alpha1
kind: Workload
metadata:
  name: web
  namespace: shop
  labels: {app: web, ringfence.io/mesh: enabled}
spec:
  nodeName: vm-1
  serviceAccountName: store
  systemdUnit: web@blue.service
  addresses: [10.0.0.5, "fd00:0::5"]
  ports: [{name: http, port: 8080}, {port: 9090}]
"""


def _parsed(text: str = _TEXT) -> MachineWorkload:
    (found,) = parse_manifests(text, origin="test").objects
    assert isinstance(found, MachineWorkload)
    return found


def test_a_workload_is_a_pod_with_a_cgroup() -> None:
    found = _parsed()

    assert str(found.key) == "Workload shop/web"
    pod = found.pod
    assert (pod.node_name, pod.service_account, pod.addresses) == ("vm-1", "store", ("10.0.0.5", "fd00::5"))
    assert pod.cgroup is not None
    assert (pod.cgroup.unit, pod.cgroup.path, pod.cgroup.ports) == ("web@blue.service", "", (8080, 9090))
    assert [(each.name, each.port) for each in pod.ports] == [("http", 8080), ("", 9090)]


def test_another_place_account_or_address_is_another_incarnation() -> None:
    before = _parsed().pod.uid
    for old, new in (("vm-1", "vm-2"), ("store", "other"), ("10.0.0.5", "10.0.0.6"), ("blue", "green")):
        assert _parsed(_TEXT.replace(old, new)).pod.uid != before
    assert _parsed(_TEXT.replace("app: web", "app: shop")).pod.uid == before


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("  systemdUnit: web@blue.service\n", "", "spec"),
        ("systemdUnit: web@blue.service", "systemdUnit: web.service\n  cgroup: /a", "spec"),
        ("systemdUnit: web@blue.service", "cgroup: system.slice/web.service", "spec.cgroup"),
        ("systemdUnit: web@blue.service", "cgroup: /system.slice/../web", "must not hold . or .."),
        ("systemdUnit: web@blue.service", "cgroup: /", "spec.cgroup"),
        ("systemdUnit: web@blue.service", "systemdUnit: ../web.service", "spec.systemdUnit"),
        ('"fd00:0::5"', "10.0.0.6", "at most one IPv4 and one IPv6"),
        ('[10.0.0.5, "fd00:0::5"]', "[]", "spec.addresses"),
        ("10.0.0.5", "10.0.0", "spec.addresses"),
        ("8080", "70000", "spec.ports[0].port"),
        ("  ports: [{name: http, port: 8080}, {port: 9090}]\n", "", "allPorts: true"),
        ("  nodeName: vm-1\n", "", "nodeName"),
        ("nodeName: vm-1", "node: vm-1", "node"),
        ("mesh: enabled", "mesh: yes", "enabled"),
    ],
)
def test_what_could_be_misunderstood_is_refused_with_its_place(old: str, new: str, complaint: str) -> None:
    assert old in _TEXT
    with pytest.raises(ManifestError) as refused:
        parse_manifests(_TEXT.replace(old, new), origin="web.yaml")

    assert complaint in str(refused.value)
    assert str(refused.value).startswith("web.yaml")


def test_the_schema_the_crd_and_the_reader_agree_on_the_example() -> None:
    said = yaml.safe_load(_TEXT)
    jsonschema.validate(said, load("workload.schema.json"))
    (version,) = yaml.safe_load(WORKLOADS.read_text(encoding="utf-8"))["spec"]["versions"]
    schema: Any = version["schema"]["openAPIV3Schema"]
    jsonschema.Draft4Validator(schema).validate(said)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft4Validator(schema).validate(said | {"spec": said["spec"] | {"cgroup": "/a"}})


def test_all_ports_are_none_in_particular() -> None:
    cgroup = _parsed(_TEXT.replace("ports: [{name: http, port: 8080}, {port: 9090}]", "allPorts: true")).pod.cgroup

    assert cgroup is not None
    assert cgroup.ports is None


def test_the_ca_grants_the_identity_to_the_node_that_is_named_and_to_no_other() -> None:
    found = _parsed()
    placements = Placements(trust_domain="cluster.local", objects={found.key: found})
    identity = SpiffeId.workload("cluster.local", "shop", "store")

    placements.require_placed(identity, node="vm-1")
    with pytest.raises(Refusal, match="no pod with this service account"):
        placements.require_placed(identity, node="vm-2")
    outside = _parsed(_TEXT.replace("mesh: enabled", "mesh: disabled"))
    withheld = Placements(trust_domain="cluster.local", objects={outside.key: outside})
    with pytest.raises(Refusal, match="Workload shop/web is not enrolled"):
        withheld.require_placed(identity, node="vm-1")


def test_the_registry_knows_it_by_address_node_and_service() -> None:
    registry = Registry("cluster.local")
    text = (
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n"
        "spec: {clusterIP: 10.1.0.1, selector: {app: web}, ports: [{port: 80, targetPort: http}]}\n"
    )
    service = parse_manifests(text, origin="test").objects
    changes = registry.apply(Update(upserts=(_parsed(), *service)))

    (workload,) = changes.workloads_added
    assert workload.cgroup == Cgroup(unit="web@blue.service", ports=(8080, 9090))
    assert workload.enrolled
    assert registry.workload_at("fd00::5") is workload
    assert registry.workloads_on("vm-1") == (workload,)
    port = registry.service_at("10.1.0.1", 80)
    assert port is not None
    assert [str(each.address) for each in registry.endpoints(port, 4)] == ["10.0.0.5:8080"]

    gone = registry.apply(Update(deletes=(_parsed().key,)))
    assert gone.workloads_removed == (workload,)
    assert registry.workload_at("10.0.0.5") is None


@pytest.mark.parametrize("workload_first", [True, False])
def test_a_pod_of_the_same_name_is_in_force_and_the_conflict_is_told(workload_first: bool) -> None:
    text = (
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop}\n"
        "spec: {nodeName: n}\nstatus: {podIP: 10.0.0.9}\n"
    )
    (pod,) = parse_manifests(text, origin="test").objects
    registry = Registry("cluster.local")
    for each in (_parsed(), pod) if workload_first else (pod, _parsed()):
        registry.apply(Update(upserts=(each,)))

    found = registry.workload_named(ObjectName("shop", "web"))
    assert found is not None
    assert found.addresses == ("10.0.0.9",)
    assert registry.conflicts() == ("Workload shop/web has the name of a Pod, which is in force; give it another",)

    registry.apply(Update(deletes=(pod.key,)))
    found = registry.workload_named(ObjectName("shop", "web"))
    assert found is not None
    assert found.cgroup is not None
    assert registry.conflicts() == ()
