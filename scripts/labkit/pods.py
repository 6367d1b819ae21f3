"""Add a pod to the lab, and delete one.

A pod is a network namespace, an interface, a name and a Pod manifest; what runs
in it is started with `scripts/lab exec`.  It exists from the moment its
``pod.json`` does; namespaces and interfaces without one are what an interrupted
command left, and go when the next pod is made.
"""

import os
import sys
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

from labkit import cgroups, layout, manifests, netns, service_nat, services, state, topology, waiting
from labkit.errors import LabError

MESH_LABEL: Final = "ringfence.io/mesh"
TRUST_DOMAIN_ANNOTATION: Final = "ringfence.io/trust-domain"
_GRACE_S: Final = 2.0

_RESOLV_CONF: Final = """\
# Names are answered by /etc/hosts; nothing outside the lab is asked.
nameserver 127.0.0.1
options timeout:1 attempts:1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod that the lab made."""

    name: str
    namespace: str
    node: int
    host: int  # last part of its addresses
    cgroup: str = ""  # where it is no namespace but a cgroup of its node

    @property
    def netns(self) -> str:
        """Its network namespace."""
        return layout.node_netns(self.node) if self.cgroup else layout.pod_netns(self.namespace, self.name)

    @property
    def kind(self) -> str:
        """Of its manifest."""
        return "Workload" if self.cgroup else "Pod"

    @property
    def ips(self) -> tuple[str, str]:
        """IPv4 and IPv6."""
        return layout.pod_v4(self.node, self.host), layout.pod_v6(self.node, self.host)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What `scripts/lab pod` asks for."""

    name: str
    namespace: str
    node: int
    service_account: str
    labels: dict[str, str]
    ports: list[int]
    mesh: bool


def all_pods() -> list[Pod]:
    """The pods of the lab, by node and address."""
    described = [state.read_json(path, None) for path in layout.PODS_DIR.glob("*/*/pod.json")]
    found = [Pod(**each) for each in described if each is not None]  # None: deleted meanwhile
    return sorted(found, key=lambda pod: (pod.node, pod.host))


def find(text: str) -> Pod:
    """``NAME`` or ``NAMESPACE/NAME``; a bare name is looked for in ``default`` first, then everywhere.

    Raises:
        LabError: none or several; lists the known ones.
    """
    namespace, slash, name = text.rpartition("/")
    pods = all_pods()
    matching = [pod for pod in pods if pod.name == name and (not slash or pod.namespace == namespace)]
    if not slash and len(matching) > 1:
        matching = [pod for pod in matching if pod.namespace == "default"] or matching
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise LabError(f"several pods are named {name}: {', '.join(map(str, matching))}; give the namespace too")
    known = ", ".join(map(str, pods)) or "there is none yet; add one with `scripts/lab pod NAME --node K`"
    raise LabError(f"no pod {text}; known: {known}")


def add(lab: state.Lab, wanted: Wanted) -> Pod:
    """Make the pod and write its manifests.  The caller holds the lock.

    Raises:
        LabError: it exists, a name is not valid, or the node is full.
    """
    for what, text in (
        ("pod", wanted.name),
        ("namespace", wanted.namespace),
        ("service account", wanted.service_account),
    ):
        layout.require_dns_label(what, text)
    lab.require_node(wanted.node)
    pods = all_pods()
    if any(pod.name == wanted.name and pod.namespace == wanted.namespace for pod in pods):
        name = f"{wanted.namespace}/{wanted.name}"
        raise LabError(f"pod {name} exists already; `scripts/lab delete pod/{name}` removes it")
    _sweep(lab, pods)
    if lab.capture != "cgroup" and netns.exists(layout.pod_netns(wanted.namespace, wanted.name)):
        other = next(each for each in pods if each.netns == layout.pod_netns(wanted.namespace, wanted.name))
        raise LabError(f"the namespace of {wanted.namespace}/{wanted.name} would have the name of pod {other}'s")
    used = {pod.host for pod in pods if pod.node == wanted.node}
    free = [host for host in range(layout.FIRST_POD_HOST, layout.LAST_POD_HOST + 1) if host not in used]
    if not free:
        raise LabError(f"node {wanted.node} is full: {len(used)} pods")
    cgroup = cgroups.path(wanted.node, wanted.namespace, wanted.name) if lab.capture == "cgroup" else ""
    pod = Pod(name=wanted.name, namespace=wanted.namespace, node=wanted.node, host=free[0], cgroup=cgroup)
    if cgroup:
        cgroups.create(cgroup)
        topology.add_node_addresses(node=pod.node, host=pod.host)
    else:
        topology.add_pod(netns_name=pod.netns, node=pod.node, host=pod.host)
    directory = layout.pod_dir(pod.namespace, pod.name)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "hosts").touch()
    (directory / "resolv.conf").write_text(_RESOLV_CONF, encoding="ascii")
    state.write_json(directory / "pod.json", asdict(pod))
    _write_manifests(pod, wanted)
    sync(lab)
    return pod


def _sweep(lab: state.Lab, pods: list[Pod]) -> None:
    """Remove what interrupted commands left: namespaces and interfaces of pods that do not exist."""
    expected = {layout.LINK_NETNS, *map(layout.node_netns, range(lab.nodes + 1)), *(pod.netns for pod in pods)}
    leftovers = [name for name in netns.existing() if name not in expected]
    netns.end_processes(leftovers, grace_s=0)
    for name in leftovers:
        netns.delete(name)
    for node in lab.node_numbers:
        for host in topology.pod_interfaces(node) - {pod.host for pod in pods if pod.node == node}:
            topology.remove_pod_interface(node=node, host=host)


def _write_manifests(pod: Pod, wanted: Wanted) -> None:
    if manifests.read("Namespace", None, pod.namespace) is None:
        metadata = {"name": pod.namespace, "labels": {MESH_LABEL: "enabled"}}
        manifests.write({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    metadata = {
        "name": pod.name,
        "namespace": pod.namespace,
        "uid": str(uuid.uuid4()),
        "creationTimestamp": now,
        "labels": {**wanted.labels, **({} if wanted.mesh else {MESH_LABEL: "disabled"})},
    }
    if pod.cgroup:
        _write_workload(pod, wanted, metadata)
        return
    manifests.write(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": metadata,
            "spec": {
                "nodeName": layout.node_name(pod.node),
                "serviceAccountName": wanted.service_account,
                "containers": [
                    {
                        "name": "main",
                        "image": "lab",
                        "ports": [{"containerPort": port, "protocol": "TCP"} for port in wanted.ports],
                    }
                ],
            },
            "status": {
                "phase": "Running",
                "hostIP": layout.link_v4(pod.node),
                "podIP": pod.ips[0],
                "podIPs": [{"ip": ip} for ip in pod.ips],
                "startTime": now,
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now}],
            },
        }
    )


def _write_workload(pod: Pod, wanted: Wanted, metadata: dict[str, Any]) -> None:
    """What a pod is in a virtual machine.  Its addresses are its own, so all of their ports are."""
    manifests.write(
        {
            "apiVersion": "ringfence.io/v1alpha1",
            "kind": "Workload",
            "metadata": metadata,
            "spec": {
                "nodeName": layout.node_name(pod.node),
                "serviceAccountName": wanted.service_account,
                "cgroup": pod.cgroup,
                "addresses": list(pod.ips),
                "ports": [{"port": port} for port in wanted.ports],
                "allPorts": True,
            },
        }
    )


def identity(pod: Pod) -> str | None:
    """The pod's SPIFFE ID, None when it is not in the mesh."""
    manifest = manifests.read(pod.kind, pod.namespace, pod.name)
    if manifest is None:
        return None
    namespace = manifests.read("Namespace", None, pod.namespace) or {"metadata": {}}
    labels = [each["metadata"].get("labels") or {} for each in (manifest, namespace)]
    if (labels[0].get(MESH_LABEL) or labels[1].get(MESH_LABEL)) != "enabled":
        return None
    account = manifest["spec"].get("serviceAccountName") or "default"
    node = manifests.read("Node", None, layout.node_name(pod.node)) or {"metadata": {}}
    domain = (node["metadata"].get("annotations") or {}).get(TRUST_DOMAIN_ANNOTATION) or layout.TRUST_DOMAIN
    return f"spiffe://{domain}/ns/{pod.namespace}/sa/{account}"


def describe(pod: Pod) -> dict[str, Any]:
    """What `scripts/lab pod` prints."""
    return {
        "name": pod.name,
        "namespace": pod.namespace,
        "node": pod.node,
        "ipv4": pod.ips[0],
        "ipv6": pod.ips[1],
        "identity": identity(pod),
    }


def delete(lab: state.Lab, pod: Pod) -> None:
    """Delete a pod: its manifest, then, when its agent let go of it, its processes and its namespace.

    Raises:
        LabError: the agent did not let go in time; the pod is gone nevertheless.
    """
    manifests.remove(pod.kind, pod.namespace, pod.name)
    sync(lab)
    refusal = None
    try:
        waiting.until_loaded(lab)
        waiting.until_let_go(lab, namespace=pod.namespace, name=pod.name, node=pod.node)
    except LabError as exc:
        refusal = exc
    if pod.cgroup:
        cgroups.remove(pod.cgroup, grace_s=_GRACE_S)
        topology.remove_node_addresses(node=pod.node, host=pod.host)
    else:
        netns.end_processes([pod.netns], grace_s=_GRACE_S)
        topology.remove_pod_interface(node=pod.node, host=pod.host)
        netns.delete(pod.netns)
    directory = layout.pod_dir(pod.namespace, pod.name)
    for name in ("pod.json", "hosts", "resolv.conf"):
        (directory / name).unlink(missing_ok=True)
    directory.rmdir()
    if refusal is not None:
        raise LabError(f"pod {pod} is deleted, but {refusal}")


def sync(lab: state.Lab) -> None:
    """Bring what the lab derives from the manifests up to date: names in the pods, rules in the nodes."""
    objects = manifests.read_all()
    lines = services.hosts_lines(objects)
    for pod in all_pods():
        text = services.hosts_file(namespace=pod.namespace, name=pod.name, ips=pod.ips, lines=lines)
        _rewrite(str(layout.pod_dir(pod.namespace, pod.name) / "hosts"), text.encode())
    service_nat.refresh(lab, objects)


def _rewrite(path: str, content: bytes) -> None:
    """In place, because running programs have this very file mounted as /etc/hosts."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if os.pread(fd, len(content) + 1, 0) != content:
            os.pwrite(fd, content, 0)
            os.ftruncate(fd, len(content))
    finally:
        os.close(fd)


def say_if_agent_is_down(node: int, running: bool) -> None:
    """A pod on a node without agent is not an error, but its author should know."""
    if not running:
        print(f"lab: agent-{node} does not run; the pod is served once it does", file=sys.stderr)
