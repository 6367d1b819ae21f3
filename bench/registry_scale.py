"""The registry at scale, without network: lookups, one change, memory.

Runs in a process of its own, so that its memory is the registry's and what the
registry needs, and prints one line of JSON.

Each service has one EndpointSlice, its endpoints are pods, half of them in the
mesh; policies are PeerAuthentications, which the registry keeps by workload.
"""

import argparse
import gc
import ipaddress
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from bench import accounting
from ca.manifests import (
    EndpointSlice,
    ManifestObject,
    Namespace,
    Node,
    PeerAuthentication,
    Pod,
    Service,
    ServicePortSpec,
    SliceEndpoint,
    SlicePort,
)
from node_agent.model import Endpoint, MtlsMode, ObjectName, ServicePort, Workload
from node_agent.registry import Registry, Update

_NAMESPACES: Final = 100
_NODES: Final = 100
_LOOKUPS: Final = 100_000
_CHANGES: Final = 200
_FIRST_POD: Final = int(ipaddress.IPv4Address("10.0.0.0"))
_FIRST_SERVICE: Final = int(ipaddress.IPv4Address("172.16.0.0"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--services", type=int, default=10_000)
    parser.add_argument("--endpoints", type=int, default=100_000)
    parser.add_argument("--policies", type=int, default=5_000)
    sizes = parser.parse_args()
    baseline_mb = accounting.own_rss_mb()
    registry = Registry("cluster.local")
    began = time.perf_counter()
    each = sizes.endpoints // sizes.services
    registry.apply(Update(upserts=tuple(_cluster(services=sizes.services, each=each, policies=sizes.policies))))
    load_s = time.perf_counter() - began
    for service in registry.services():
        for port in registry.service_ports(ObjectName(service.namespace, service.name)):
            registry.endpoints(port, 4)  # made at the first question, then kept: part of what it takes
    gc.collect()
    figures = {"load_s": load_s, "rss_mb": accounting.own_rss_mb(), "rss_before_mb": baseline_mb}
    figures |= _lookups(registry, services=sizes.services, endpoints=sizes.services * each)
    figures |= _changes(registry, services=sizes.services, each=each)
    json.dump(figures, sys.stdout)


def _cluster(*, services: int, each: int, policies: int) -> Iterator[ManifestObject]:
    for number in range(_NAMESPACES):
        yield Namespace(name=f"team-{number}", labels={"ringfence.io/mesh": "enabled" if number % 2 else "disabled"})
    for number in range(_NODES):
        yield Node(name=f"node-{number}", pod_cidrs=(f"10.{number}.0.0/16",))
    for number in range(services):
        namespace = f"team-{number % _NAMESPACES}"
        yield Service(
            namespace=namespace,
            name=f"service-{number}",
            cluster_ips=(_ip(_FIRST_SERVICE, number),),
            ports=(ServicePortSpec("http", 80, 8080),),
            selector={"app": f"app-{number}"},
        )
        for replica in range(each):
            yield _pod(number, replica, each)
        yield _slice(number, each)
    for number in range(policies):
        service = number * services // policies
        yield PeerAuthentication(
            namespace=f"team-{service % _NAMESPACES}",
            name=f"strict-{number}",
            selector={"app": f"app-{service}"},
            mode="STRICT",
        )


def _pod(service: int, replica: int, each: int) -> Pod:
    number = service * each + replica
    return Pod(
        namespace=f"team-{service % _NAMESPACES}",
        name=f"app-{service}-{replica}",
        uid=f"0000-{number}",
        labels={"app": f"app-{service}"},
        node_name=f"node-{number % _NODES}",
        service_account=f"app-{service}",
        addresses=(_ip(_FIRST_POD, number),),
    )


def _slice(service: int, each: int, *, down: int | None = None) -> EndpointSlice:
    endpoints = tuple(
        SliceEndpoint(_ip(_FIRST_POD, service * each + replica), replica != down, f"app-{service}-{replica}")
        for replica in range(each)
    )
    return EndpointSlice(
        namespace=f"team-{service % _NAMESPACES}",
        name=f"service-{service}-1",
        service=f"service-{service}",
        ip_version=4,
        endpoints=endpoints,
        ports=(SlicePort("http", 8080),),
    )


def _ip(first: int, number: int) -> str:
    return str(ipaddress.IPv4Address(first + number + 1))


def _lookups(registry: Registry, *, services: int, endpoints: int) -> dict[str, float]:
    draw = random.Random(1)
    pods = [_ip(_FIRST_POD, draw.randrange(endpoints)) for _ in range(_LOOKUPS)]
    cluster_ips = [_ip(_FIRST_SERVICE, draw.randrange(services)) for _ in range(_LOOKUPS)]
    workloads = [_known(registry.workload_at(ip)) for ip in pods]
    ports = [_known(registry.service_at(ip, 80)) for ip in cluster_ips]

    def workload_at() -> Sequence[Workload | None]:
        return [registry.workload_at(ip) for ip in pods]

    def service_at() -> Sequence[ServicePort | None]:
        return [registry.service_at(ip, 80) for ip in cluster_ips]

    def endpoints_of() -> Sequence[tuple[Endpoint, ...]]:
        return [registry.endpoints(port, 4) for port in ports]

    def mtls_mode() -> Sequence[MtlsMode]:
        return [registry.mtls_mode(workload, 8080) for workload in workloads]

    mtls_mode()
    figures = {}
    for what in (workload_at, service_at, endpoints_of, mtls_mode):
        figures[f"{what.__name__}_us"] = min(_time_us(what) for _ in range(3)) / _LOOKUPS
    return figures | {"lookup_us": max(figures.values())}


def _time_us(what: Callable[[], object]) -> float:
    began = time.perf_counter()
    what()
    return (time.perf_counter() - began) * 1e6


T = TypeVar("T")


def _known(found: T | None) -> T:
    assert found is not None
    return found


def _changes(registry: Registry, *, services: int, each: int) -> dict[str, float]:
    """One endpoint goes down: until the registry answers accordingly; a slice, and then the pod behind it."""
    draw = random.Random(2)
    took_ms: list[float] = []
    for _ in range(_CHANGES):
        service = draw.randrange(services)
        port = registry.service_at(_ip(_FIRST_SERVICE, service), 80)
        assert port is not None
        for down in (0, None):
            update = Update(upserts=(_slice(service, each, down=down),))
            began = time.perf_counter()
            registry.apply(update)
            ready = [endpoint.ready for endpoint in registry.endpoints(port, 4)]
            took_ms.append((time.perf_counter() - began) * 1e3)
            assert ready.count(False) == (0 if down is None else 1)
    took_ms.sort()
    return {"change_ms": took_ms[-1], "change_p50_ms": took_ms[len(took_ms) // 2]}


if __name__ == "__main__":
    main()
