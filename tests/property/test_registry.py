"""However it got there, step by step or at once, the registry gives the same answers."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ca.manifests import ExternalEndpoint, ExternalPort, ExternalService, ObjectKey, SliceEndpoint
from node_agent.model import ObjectName, Workload
from node_agent.registry import Registry, Update
from node_agent.registry.changes import RegistryObject, ResolvedName
from tests.manifest_builder import (
    authorization_policy,
    endpoint_slice,
    meshed_namespace,
    namespace,
    node,
    peer_authentication,
    pod,
    service,
)

IPS = st.sampled_from(["10.1.0.1", "10.1.0.2", "10.1.0.3", "fd00::1", "fd00::2"])
NAMESPACES = st.sampled_from(["shop", "bank"])
NAMES = st.sampled_from(["a", "b", "c"])
LABELS = st.dictionaries(st.sampled_from(["app", "tier"]), st.sampled_from(["x", "y"]), max_size=2)
CREATED = st.sampled_from(["", "2024", "2025"])
ENDPOINTS = st.lists(st.builds(SliceEndpoint, IPS, st.booleans(), st.just("") | NAMES), max_size=4)

HOSTS = st.sampled_from(["a.example", "b.example"])
POLICY_SPECS: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [
        {},
        {"selector": {"matchLabels": {"app": "x"}}, "action": "DENY", "rules": [{}]},
        {"rules": [{"from": [{"source": {"serviceAccounts": ["a"], "ipBlocks": ["10.1.0.0/24"]}}]}]},
        {"rules": [{"to": [{"operation": {"methods": ["GET"], "ports": ["80"]}}]}]},
        {"action": "AUDIT", "rules": [{"when": [{"key": "source.ip", "notValues": ["10.1.0.1"]}]}]},
    ]
)

OBJECTS: st.SearchStrategy[RegistryObject] = st.one_of(
    st.builds(
        lambda name, ips, **fields: pod(name, *dict.fromkeys(ips), **fields),
        NAMES,
        st.lists(IPS, max_size=2),
        namespace=NAMESPACES,
        uid=st.sampled_from(["1", "2"]),
        labels=LABELS,
        created=CREATED,
        ready=st.booleans(),
        terminating=st.booleans(),
        host_network=st.booleans(),
        phase=st.sampled_from(["Running", "Failed"]),
        service_account=NAMES,
        node_name=NAMES,
    ),
    st.builds(
        lambda name, ips, **fields: service(name, *dict.fromkeys(ips), **fields),
        NAMES,
        st.lists(IPS, max_size=2),
        namespace=NAMESPACES,
        selector=LABELS,
        created=CREATED,
        publish_not_ready=st.booleans(),
    ),
    st.builds(
        lambda name, endpoints, **fields: endpoint_slice(name, *endpoints, **fields),
        NAMES,
        ENDPOINTS,
        namespace=NAMESPACES,
        service=NAMES,
        ip_version=st.sampled_from([4, 6]),
    ),
    st.builds(namespace, NAMESPACES) | st.builds(meshed_namespace, NAMESPACES),
    st.builds(
        lambda name, cidr, zone: node(name, cidr, **{"topology.kubernetes.io/zone": zone}),
        NAMES,
        st.sampled_from(["10.1.0.0/24", "10.0.0.0/8", "fd00::/64"]),
        NAMES,
    ),
    st.builds(
        peer_authentication,
        NAMES,
        st.sampled_from(["STRICT", "PERMISSIVE", None]),
        namespace=NAMESPACES,
        selector=LABELS,
        created=CREATED,
    ),
    st.builds(authorization_policy, NAMES, POLICY_SPECS, namespace=NAMESPACES),
    st.builds(
        ExternalService,
        kind=st.sampled_from(["Service", "ServiceEntry"]),
        namespace=NAMESPACES,
        name=NAMES,
        created=CREATED,
        hosts=st.lists(HOSTS, min_size=1, max_size=2, unique=True).map(tuple),
        addresses=st.lists(IPS, max_size=1).map(tuple),
        ports=st.sampled_from([(ExternalPort("http", 80, 8080),), (ExternalPort("http", 80, 80),)]),
        endpoints=st.lists(st.builds(ExternalEndpoint, HOSTS | IPS), max_size=2, unique=True).map(tuple),
    ),
    st.builds(
        lambda name, now, recent: ResolvedName(
            name=name, addresses=tuple(sorted(now)), recent=tuple(sorted(recent - now))
        ),
        HOSTS,
        st.sets(IPS),
        st.sets(IPS),
    ),
)
STEPS = st.lists(st.lists(st.tuples(OBJECTS, st.booleans()), max_size=4), max_size=8)


def answers(registry: Registry) -> dict[str, Any]:
    ips = ["10.1.0.1", "10.1.0.2", "10.1.0.3", "fd00::1", "fd00::2"]
    services = [ObjectName(space, name) for space in ("shop", "bank") for name in "abc"]
    ports = [port for name in services for port in registry.service_ports(name)]
    workloads = sorted(registry.workloads(), key=lambda each: each.name)
    return {
        "workloads": workloads,
        "by address": [registry.workload_at(ip) for ip in ips],
        "by node": [registry.workloads_on(each) for each in "abc"],
        "services": [registry.service_at(ip, 80) for ip in ips],
        "outside": [registry.external_at(ip, 80) for ip in ips],
        "names": registry.external_names(),
        "endpoints": [registry.endpoints(port, version) for port in ports for version in (4, 6)],
        "networks": [registry.in_pod_network(ip) for ip in ips],
        "modes": [registry.mtls_mode(each, 8080) for each in workloads],
        "conflicts": registry.conflicts(),
        "policies": sorted(registry.authorization_policies(), key=lambda each: each.key),
        "faults": list(registry.faults()),
    }


@settings(max_examples=300)
@given(STEPS)
def test_step_by_step_is_the_same_as_at_once(steps: list[list[tuple[RegistryObject, bool]]]) -> None:
    registry = Registry("example.org")
    objects: dict[ObjectKey, RegistryObject] = {}
    followed: dict[tuple[ObjectName, str], Workload] = {}
    before = answers(registry)
    for step in steps:
        upserts = {each.key: each for each, kept in step if kept}
        deletes = {each.key for each, kept in step if not kept} - upserts.keys()
        changes = registry.apply(Update(upserts=tuple(upserts.values()), deletes=tuple(deletes)))
        objects = {key: each for key, each in objects.items() if key not in deletes} | upserts

        fresh = Registry("example.org")
        fresh.apply(Update(upserts=tuple(objects.values())))
        after = answers(registry)
        assert after == answers(fresh)

        for gone in changes.workloads_removed:
            assert followed.pop((gone.name, gone.uid)) == gone
        for new in changes.workloads_added:
            assert (new.name, new.uid) not in followed
            followed[new.name, new.uid] = new
        for changed in changes.workloads_changed:
            followed[changed.name, changed.uid] = changed
        assert sorted(followed.values(), key=lambda each: each.name) == after["workloads"]
        if not changes:
            # A pod network changes no workload and no service, only what is believed of addresses in it.
            assert after == before | {each: after[each] for each in ("networks", "outside", "conflicts")}
        before = after
