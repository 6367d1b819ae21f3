"""Where a connection may go, and where it may not, by what the registry knows."""

from random import Random

import pytest
import trio
import trio.testing

from ca.manifests import ManifestObject, TCPRoute
from ca.manifests.tcp_route import Backend, ParentPort
from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.model import EndpointAddress, OriginalDestination
from node_agent.proxy.routes import NoBackend, Router, is_local_address
from node_agent.registry import Registry, Update
from tests.manifest_builder import meshed_namespace, namespace, node, pod, service

_NODE_IP = "10.1.0.254"


class _Cluster:
    """node-1 with pods 10.1.0.0/24 and fd00:1::/64; an enrolled and a plain pod; a service without cluster peers."""

    def __init__(self, *more: ManifestObject) -> None:
        self.registry = Registry("example.org")
        self.put(
            node("node-1", "10.1.0.0/24", "fd00:1::/64"),
            meshed_namespace("shop"),
            namespace("legacy"),
            pod("web", "10.1.0.1", "fd00:1::1"),
            pod("old", "10.1.0.2", namespace="legacy"),
            service("web", "10.2.0.1", "fd00:2::1"),
            *more,
        )
        self.router = Router(self.registry, is_node_address=lambda ip: ip == _NODE_IP, draw=Random(1).random)

    def put(self, *objects: ManifestObject) -> None:
        self.registry.apply(Update(upserts=objects))


async def _refusal(cluster: _Cluster, ip: str, port: int) -> CloseReason:
    with pytest.raises(ConnectionFailure) as caught:
        await cluster.router.route(OriginalDestination(ip, port))
    assert caught.value.detail
    return caught.value.reason


@pytest.mark.parametrize(("ip", "endpoint"), [("10.2.0.1", "10.1.0.1"), ("fd00:2::1", "fd00:1::1")])
async def test_service_address_leads_to_its_endpoints_of_the_same_ip_version(ip: str, endpoint: str) -> None:
    route = await _Cluster().router.route(OriginalDestination(ip, 80))
    assert str(route.service) == "shop/web:80"
    assert [each.address for each in route.candidates] == [EndpointAddress(endpoint, 8080)]


async def test_service_address_with_another_port_is_refused_not_passed_through() -> None:
    assert await _refusal(_Cluster(), "10.2.0.1", 81) is CloseReason.UNKNOWN_DESTINATION


async def test_pod_address_leads_to_that_pod_on_any_port() -> None:
    cluster = _Cluster()
    for ip in ("10.1.0.1", "fd00:1::1", "10.1.0.2"):
        route = await cluster.router.route(OriginalDestination(ip, 9999))
        assert route.service is None
        assert [each.address for each in route.candidates] == [EndpointAddress(ip, 9999)]
        assert [each.workload for each in route.candidates] == [cluster.registry.workload_at(ip)]


@pytest.mark.parametrize("port", [15001, 15006, 15008])
async def test_the_agents_own_listeners_are_no_destination(port: int) -> None:
    cluster = _Cluster()
    assert await _refusal(cluster, "10.1.0.1", port) is CloseReason.DESTINATION_NOT_ALLOWED
    assert (await cluster.router.route(OriginalDestination("10.1.0.2", port))).candidates, "not enrolled: an open port"


async def test_outside_of_the_cluster_is_passed_through() -> None:
    route = await _Cluster().router.route(OriginalDestination("192.0.2.7", 443))
    assert route.service is None
    assert [(each.address, each.workload) for each in route.candidates] == [(EndpointAddress("192.0.2.7", 443), None)]


async def test_address_of_the_node_inside_the_pod_network_is_passed_through() -> None:
    route = await _Cluster().router.route(OriginalDestination(_NODE_IP, 53))
    assert [each.workload for each in route.candidates] == [None]


@pytest.mark.parametrize("ip", ["10.1.0.99", "fd00:1::99"])
async def test_pod_address_that_nobody_has_is_refused_in_the_end(
    ip: str, autojump_clock: trio.testing.MockClock
) -> None:
    began = autojump_clock.current_time()
    assert await _refusal(_Cluster(), ip, 80) is CloseReason.UNKNOWN_DESTINATION
    assert 1 < autojump_clock.current_time() - began < 4


async def test_pod_whose_manifest_is_on_its_way_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    cluster = _Cluster()
    async with trio.open_nursery() as nursery:

        async def arrive() -> None:
            await trio.sleep(1)
            cluster.put(pod("late", "10.1.0.99"))

        nursery.start_soon(arrive)
        route = await cluster.router.route(OriginalDestination("10.1.0.99", 80))
    late = cluster.registry.workload_at("10.1.0.99")
    assert late is not None
    assert late.enrolled
    assert [each.workload for each in route.candidates] == [late]


async def test_endpoint_outside_of_the_cluster_may_be_plain_and_one_inside_must_be_a_workload() -> None:
    router = _Cluster().router
    router.require_outside(EndpointAddress("192.0.2.7", 443))
    with pytest.raises(ConnectionFailure) as caught:
        router.require_outside(EndpointAddress("10.1.0.99", 80))
    assert caught.value.reason is CloseReason.UNKNOWN_DESTINATION


@pytest.mark.parametrize(
    ("ip", "local"), [("127.0.0.1", True), ("::1", True), ("192.0.2.7", False), ("2001:db8::7", False)]
)
def test_local_addresses_are_those_that_can_be_bound(ip: str, local: bool) -> None:
    assert is_local_address(ip) is local


@pytest.mark.parametrize(("weight", "named"), [(1, "shop/web-v2:8080"), (0, "shop/web:80")])
async def test_a_route_that_leads_nowhere_says_which_service_it_was(weight: int, named: str) -> None:
    backends = (Backend("web-v2", 8080, weight),)
    route = TCPRoute(namespace="shop", name="canary", parents=(ParentPort("web", 80),), backends=backends)
    with pytest.raises(NoBackend, match="TCPRoute shop/canary") as caught:
        await _Cluster(route).router.route(OriginalDestination("10.2.0.1", 80))
    assert str(caught.value.service) == named
    assert caught.value.reason is CloseReason.NO_SERVICE_ENDPOINTS
