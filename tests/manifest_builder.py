"""Kubernetes objects for tests, with everything that a test does not care about filled in."""

from typing import Any

from ca.manifests import (
    AuthorizationPolicy,
    ContainerPort,
    EndpointSlice,
    Namespace,
    Node,
    PeerAuthentication,
    Pod,
    Service,
    ServicePortSpec,
    SliceEndpoint,
    SlicePort,
    parse_object,
)


def pod(name: str, *addresses: str, **fields: Any) -> Pod:
    """A running pod on node-1, labelled ``app: web``, with a port 8080 named http."""
    values: dict[str, Any] = {
        "namespace": "shop",
        "uid": f"uid-{name}",
        "labels": {"app": "web"},
        "node_name": "node-1",
        "ports": (ContainerPort("http", 8080),),
    }
    return Pod(name=name, addresses=addresses, **(values | fields))


def service(name: str = "web", *cluster_ips: str, **fields: Any) -> Service:
    """A service with port 80 to the pods' port named http, selecting ``app: web``."""
    values: dict[str, Any] = {
        "namespace": "shop",
        "selector": {"app": "web"},
        "ports": (ServicePortSpec("", 80, "http"),),
    }
    return Service(name=name, cluster_ips=cluster_ips, **(values | fields))


def endpoint_slice(name: str, *endpoints: SliceEndpoint, **fields: Any) -> EndpointSlice:
    """An IPv4 slice of service shop/web with port 8080."""
    values: dict[str, Any] = {
        "namespace": "shop",
        "service": "web",
        "ip_version": 4,
        "ports": (SlicePort("", 8080),),
    }
    return EndpointSlice(name=name, endpoints=endpoints, **(values | fields))


def namespace(name: str = "shop", **labels: str) -> Namespace:
    return Namespace(name=name, labels=labels)


def meshed_namespace(name: str = "shop") -> Namespace:
    return Namespace(name=name, labels={"ringfence.io/mesh": "enabled"})


def node(name: str = "node-1", *pod_cidrs: str, **labels: str) -> Node:
    return Node(name=name, pod_cidrs=pod_cidrs, labels=labels)


def peer_authentication(name: str, mode: str | None, **fields: Any) -> PeerAuthentication:
    return PeerAuthentication(name=name, mode=mode, **({"namespace": "shop"} | fields))


def authorization_policy(name: str, spec: dict[str, Any], *, namespace: str = "shop") -> AuthorizationPolicy:
    """A policy from what its manifest says under ``spec``."""
    found = parse_object(
        {
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": {"name": name, "namespace": namespace},
            "spec": spec,
        }
    )
    assert isinstance(found, AuthorizationPolicy)
    return found
