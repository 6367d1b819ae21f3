"""Services as a cluster's control plane sees them: cluster IPs, endpoints, names.

The agents work out endpoints by themselves; what is here serves those who are not
in the mesh (:mod:`labkit.service_nat`) and the pods' /etc/hosts.
"""

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from labkit import layout
from labkit.errors import LabError

Object = dict[str, Any]
_NETWORKS: Final[dict[str, ipaddress.IPv4Network | ipaddress.IPv6Network]] = {
    "IPv4": layout.SERVICE_NETWORK_V4,
    "IPv6": layout.SERVICE_NETWORK_V6,
}
_ANY: Final[dict[str, ipaddress.IPv4Network | ipaddress.IPv6Network]] = {
    "IPv4": ipaddress.IPv4Network("0.0.0.0/0"),
    "IPv6": ipaddress.IPv6Network("::/0"),
}
_MANAGED_LABEL: Final = "kubernetes.io/service-name"


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontend:
    """One port of a Service on one of its cluster IPs, and the ready endpoints behind it."""

    ip: str
    protocol: str  # tcp or udp
    port: int
    endpoints: tuple[tuple[str, int], ...]


def cluster_ips(service: Object) -> list[str]:
    """The Service's cluster IPs; none for a headless one."""
    spec = service.get("spec") or {}
    found = spec.get("clusterIPs") or [spec.get("clusterIP")]
    return [ip for ip in found if ip and ip != "None"]


def taken_addresses(objects: Iterable[Object]) -> set[str]:
    """The cluster IPs of all Services among the objects."""
    return {ip for each in objects if each["kind"] == "Service" for ip in cluster_ips(each)}


def assign_cluster_ips(service: Object, before: Object | None, taken: set[str], origin: str) -> None:
    """Give a Service its cluster IPs as an API server does; a Service keeps those it had.

    Raises:
        LabError: it asks for an address that is not the lab's or is another Service's.
    """
    spec = service.setdefault("spec", {})
    if spec.get("type") == "ExternalName" or spec.get("clusterIP") == "None" or spec.get("clusterIPs") == ["None"]:
        return
    families = list(spec.get("ipFamilies") or ["IPv4", "IPv6"])
    if spec.get("ipFamilyPolicy") == "SingleStack":
        families = families[:1]
    wished = cluster_ips(service)
    kept = cluster_ips(before) if before is not None else []
    assigned: list[str] = []
    for family in families:
        network = _NETWORKS.get(family)
        if network is None:
            raise _refused(service, origin, "ipFamilies", f"{family!r} is neither IPv4 nor IPv6")
        mine = [ip for ip in wished if _in(ip, network)] or [ip for ip in kept if _in(ip, network)]
        assigned += mine[:1] or [_free(network, taken | set(assigned))]
    for ip in wished:
        if not any(_in(ip, network) for network in _NETWORKS.values()):
            where = f"{layout.SERVICE_NETWORK_V4} or {layout.SERVICE_NETWORK_V6}"
            raise _refused(service, origin, "clusterIP", f"{ip} is not in {where}; leave it out to get one")
        if ip in taken:
            raise _refused(service, origin, "clusterIP", f"{ip} is another Service's; leave it out to get one")
    taken.update(assigned)
    spec["clusterIP"], spec["clusterIPs"] = assigned[0], assigned
    spec["ipFamilies"] = families
    spec.setdefault("ipFamilyPolicy", "PreferDualStack" if len(families) > 1 else "SingleStack")
    for port in spec.get("ports") or []:
        port.setdefault("protocol", "TCP")


def _refused(service: Object, origin: str, key: str, reason: str) -> LabError:
    metadata = service["metadata"]
    name = f"{metadata.get('namespace', 'default')}/{metadata['name']}"
    return LabError(f"{origin}: Service {name}: spec.{key}: {reason}\nnothing was changed")


def _in(ip: str, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    try:
        return ipaddress.ip_address(ip) in network
    except ValueError:
        return False


def _free(network: ipaddress.IPv4Network | ipaddress.IPv6Network, taken: set[str]) -> str:
    for number in range(1, 65535):
        ip = str(network[number])
        if ip not in taken:
            return ip
    raise LabError(f"no address left in {network}")


def frontends(objects: list[Object]) -> list[Frontend]:
    """Every cluster IP and port of every Service, in a stable order."""
    found: list[Frontend] = []
    for service in _services(objects):
        ips = cluster_ips(service)
        for port in (service.get("spec") or {}).get("ports") or []:
            for ip in ips:
                found.append(
                    Frontend(
                        ip=str(ipaddress.ip_address(ip)),
                        protocol=str(port.get("protocol") or "TCP").lower(),
                        port=int(port["port"]),
                        endpoints=tuple(sorted(set(_endpoints(service, port, ":" in ip, objects)))),
                    )
                )
    unique = {(each.ip, each.protocol, each.port): each for each in reversed(found)}
    return [each for each in reversed(unique.values()) if each.protocol in ("tcp", "udp")]


def _services(objects: list[Object]) -> list[Object]:
    return [each for each in objects if each["kind"] == "Service"]


def _namespace(item: Object) -> str:
    return str(item["metadata"].get("namespace") or "default")


def _endpoints(service: Object, port: Object, v6: bool, objects: list[Object]) -> Iterator[tuple[str, int]]:
    """The ready endpoints of one port: from its EndpointSlices, without any from the matching Pods."""
    namespace, name = _namespace(service), service["metadata"]["name"]
    slices = [
        each
        for each in objects
        if each["kind"] == "EndpointSlice"
        and _namespace(each) == namespace
        and (each["metadata"].get("labels") or {}).get(_MANAGED_LABEL) == name
    ]
    if slices:
        for each in slices:
            yield from _slice_endpoints(each, port, v6)
        return
    for pod in _ready_pods(service, objects):
        number = _target_port(port, pod)
        if number is not None:
            yield from ((ip, number) for ip in _pod_ips(pod) if (":" in ip) == v6)


def _slice_endpoints(item: Object, port: Object, v6: bool) -> Iterator[tuple[str, int]]:
    wanted = port.get("name") or ""
    numbers = [each["port"] for each in item.get("ports") or [] if (each.get("name") or "") == wanted]
    for endpoint in item.get("endpoints") or []:
        if (endpoint.get("conditions") or {}).get("ready", True) is False:
            continue
        for ip in endpoint.get("addresses") or []:
            if _in(ip, _ANY["IPv6" if v6 else "IPv4"]):
                yield from ((ip, number) for number in numbers)


def _ready_pods(service: Object, objects: list[Object]) -> Iterator[Object]:
    selector = (service.get("spec") or {}).get("selector") or {}
    if not selector:
        return
    for pod in objects:
        if pod["kind"] not in ("Pod", "Workload") or _namespace(pod) != _namespace(service):
            continue
        labels = pod["metadata"].get("labels") or {}
        if all(labels.get(key) == value for key, value in selector.items()) and _is_ready(pod):
            yield pod


def _is_ready(pod: Object) -> bool:
    if pod["kind"] == "Workload":
        return True
    status = pod.get("status") or {}
    if pod["metadata"].get("deletionTimestamp") or status.get("phase") in ("Succeeded", "Failed"):
        return False
    return any(each.get("type") == "Ready" and each.get("status") == "True" for each in status.get("conditions") or [])


def _pod_ips(pod: Object) -> list[str]:
    if pod["kind"] == "Workload":
        return list(pod["spec"]["addresses"])
    status = pod.get("status") or {}
    found = [each.get("ip") for each in status.get("podIPs") or []] or [status.get("podIP")]
    return [ip for ip in found if ip]


def _target_port(port: Object, pod: Object) -> int | None:
    target = port.get("targetPort") or port["port"]
    if isinstance(target, int) or str(target).isdigit():
        return int(target)
    if pod["kind"] == "Workload":
        return next((int(each["port"]) for each in pod["spec"].get("ports") or [] if each.get("name") == target), None)
    for container in (pod.get("spec") or {}).get("containers") or []:
        for each in container.get("ports") or []:
            if each.get("name") == target:
                return int(each["containerPort"])
    return None


def hosts_lines(objects: list[Object]) -> dict[str, list[tuple[str, str]]]:
    """Addresses and names of the Services, by namespace; a headless Service has its ready pods' addresses."""
    found: dict[str, list[tuple[str, str]]] = {}
    for service in _services(objects):
        ips = cluster_ips(service) or [ip for pod in _ready_pods(service, objects) for ip in _pod_ips(pod)]
        found.setdefault(_namespace(service), []).extend((ip, service["metadata"]["name"]) for ip in ips)
    return found


def hosts_file(*, namespace: str, name: str, ips: Iterable[str], lines: dict[str, list[tuple[str, str]]]) -> str:
    """A pod's /etc/hosts: Services of its own namespace also answer to their short name.

    A Service with the pod's own name has that name: a Deployment's pods are not named like their Service.
    """
    text = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    if all(service != name for _, service in lines.get(namespace, [])):
        text += [f"{ip} {name}" for ip in ips]
    for service_namespace, services in sorted(lines.items()):
        for ip, service in services:
            full = f"{service}.{service_namespace}.svc.{layout.TRUST_DOMAIN}"
            short = f" {service}" if service_namespace == namespace else ""
            text.append(f"{ip} {full} {service}.{service_namespace}.svc {service}.{service_namespace}{short}")
    return "\n".join(text) + "\n"
