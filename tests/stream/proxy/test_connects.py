"""What the agent tells the kernel of services, when, and in which order: what may not go on is taken back first."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any, cast

import trio
import trio.testing

from ca.manifests import ObjectKey
from ca.spiffe import SpiffeId
from node_agent.balance import Balancer
from node_agent.capture.connect_balancing import KernelBalancing, Shares
from node_agent.model import EndpointAddress, OriginalDestination
from node_agent.proxy.connect_rules import ConnectRules
from node_agent.proxy.connects import Connects
from node_agent.registry import Registry, Update
from node_agent.telemetry.metrics import Metrics
from tests.manifest_builder import meshed_namespace, node, pod, service

_OUTSIDE = {"app": "web", "ringfence.io/mesh": "disabled"}
_WEB = OriginalDestination("10.96.0.1", 80)
_OF_ANOTHER_AGENT = OriginalDestination("10.96.0.9", 80)


class _Kernel:
    """Maps as ``KernelBalancing`` keeps them; ``room`` is for how many services."""

    def __init__(self) -> None:
        self.entries: dict[OriginalDestination, Shares] = {_OF_ANOTHER_AGENT: ()}
        self.room = 100
        self.kept = 0
        self.unreachable: list[EndpointAddress] = []

    @property
    def filed(self) -> frozenset[OriginalDestination]:
        return frozenset(self.entries)

    def keep(self, *, valid_s: float) -> None:
        self.kept += 1

    def file(self, service: OriginalDestination, shares: Shares, now: float) -> bool:
        if service not in self.entries and len(self.entries) >= self.room:
            return False
        self.entries[service] = shares
        return True

    def withdraw(self, service: OriginalDestination, now: float) -> None:
        self.entries.pop(service, None)

    def failed(self) -> list[EndpointAddress]:
        found, self.unreachable = self.unreachable, []
        return found

    def counters(self) -> dict[str, int]:
        return {"balanced": 3, "refused": 2, "missed": 1}


class _Agent:
    def __init__(self) -> None:
        self.registry = Registry("cluster.local")
        self.balancer = Balancer(rng=Random(1))
        self.kernel = _Kernel()
        self.distrusted: SpiffeId | None = None
        self.metrics = Metrics()
        self.connects = Connects(
            kernel=cast(KernelBalancing, self.kernel),
            rules=ConnectRules(
                registry=self.registry,
                balancer=self.balancer,
                require_outside=lambda _: None,
                is_default=True,
                may_check_health=True,
            ),
            registry=self.registry,
            balancer=self.balancer,
            is_trusted=lambda identity: identity != self.distrusted,
            health=None,
            pods=tuple,
            metrics=self.metrics,
            node="node-1",
        )

    def apply(self, *objects: Any, deletes: tuple[ObjectKey, ...] = ()) -> None:
        """A step of the registry, and what is told of it at once; nothing else has had its turn."""
        self.connects.follow(self.registry.apply(Update(upserts=objects, deletes=deletes)))

    def web(self) -> set[str] | None:
        """Where connections to it go; None: to the agent."""
        shares = self.kernel.entries.get(_WEB)
        return None if shares is None else {address.ip for address, _ in shares}


@asynccontextmanager
async def _running(*more: Any) -> AsyncIterator[_Agent]:
    agent = _Agent()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(agent.connects.run)
        await trio.testing.wait_all_tasks_blocked()
        assert agent.kernel.filed == {_OF_ANOTHER_AGENT}  # until the manifests are read
        agent.apply(
            node("node-1", "10.1.0.0/24"),
            meshed_namespace(),
            pod("client", "10.1.0.1", labels={"app": "client"}),
            pod("web-1", "10.1.0.2", labels=_OUTSIDE),
            pod("web-2", "10.1.0.3", labels=_OUTSIDE),
            service("web", _WEB.ip, "fd00::1"),
            *more,
        )
        await trio.testing.wait_all_tasks_blocked()
        yield agent
        nursery.cancel_scope.cancel()


async def test_what_an_agent_before_us_has_filed_goes_when_nobody_wants_it() -> None:
    async with _running() as agent:
        assert agent.kernel.filed == {_WEB, OriginalDestination("fd00::1", 80)}
        assert agent.web() == {"10.1.0.2", "10.1.0.3"}
        assert agent.kernel.entries[OriginalDestination("fd00::1", 80)] == ()  # nobody by IPv6
        port = agent.registry.service_at(*_WEB)
        assert port is not None
        assert agent.connects.describe(port) == (True, "")


async def test_an_endpoint_that_enters_the_mesh_ends_it_before_the_news_are_passed_on() -> None:
    async with _running() as agent:
        agent.apply(pod("web-2", "10.1.0.3", labels={"app": "web"}))
        assert agent.web() is None
        await trio.testing.wait_all_tasks_blocked()
        assert agent.web() is None
        port = agent.registry.service_at(*_WEB)
        assert port is not None
        assert agent.connects.describe(port) == (False, "its endpoint shop/web-2 is in the mesh")
        agent.apply(deletes=(ObjectKey("Pod", "shop", "web-2"),))
        await trio.testing.wait_all_tasks_blocked()
        assert agent.web() == {"10.1.0.2"}
        agent.apply(deletes=(ObjectKey("Service", "shop", "web"),))
        assert agent.web() is None


async def test_a_revocation_takes_everything_back_at_once_and_its_end_gives_it_back() -> None:
    async with _running() as agent:
        client = agent.registry.workload_at("10.1.0.1")
        assert client is not None
        agent.distrusted = client.identity
        agent.connects.trust_changed()
        assert not agent.kernel.filed
        agent.distrusted = None
        agent.connects.trust_changed()
        await trio.testing.wait_all_tasks_blocked()
        assert agent.web() == {"10.1.0.2", "10.1.0.3"}


async def test_the_address_of_a_service_that_another_one_takes_over_is_the_other_ones() -> None:
    async with _running(pod("other", "10.1.0.7", labels={"app": "other", "ringfence.io/mesh": "disabled"})) as agent:
        agent.apply(service("a-web", _WEB.ip, selector={"app": "other"}))  # the first by name has it
        await trio.testing.wait_all_tasks_blocked()
        assert agent.web() == {"10.1.0.7"}
        agent.apply(service("web", selector={"app": "web"}))  # the loser lets go
        await trio.testing.wait_all_tasks_blocked()
        assert agent.web() == {"10.1.0.7"}


async def test_health_is_followed_and_time_as_well(autojump_clock: trio.testing.MockClock) -> None:
    async with _running() as agent:
        port = agent.registry.service_at(*_WEB)
        assert port is not None
        one, _ = agent.registry.endpoints(port, 4)
        agent.balancer.set_unhealthy(one, True, trio.current_time(), why="no answer")
        await trio.sleep(0.01)
        assert agent.web() == {"10.1.0.3"}
        agent.balancer.set_unhealthy(one, False, trio.current_time())
        await trio.sleep(0.01)
        assert agent.web() == {"10.1.0.2", "10.1.0.3"}

        # Ejected; then to be tried, by a connection that the agent carries; then well again.
        def connect(*, works: bool) -> None:
            pick = agent.balancer.pick(port, agent.registry.endpoints(port, 4), trio.current_time())
            if pick.endpoint is not one:
                pick.release(trio.current_time())
            elif works:
                pick.connected(trio.current_time())
                pick.release(trio.current_time())
            else:
                pick.failed(trio.current_time())

        while agent.balancer.load_of(one, trio.current_time()).health == "healthy":
            connect(works=False)
        await trio.sleep(0.01)
        assert agent.web() == {"10.1.0.3"}
        kept = agent.kernel.kept
        await trio.sleep(601.0)
        assert agent.kernel.kept >= kept + 60
        assert agent.web() is None
        while agent.balancer.load_of(one, trio.current_time()).health != "healthy":
            connect(works=True)
        await trio.sleep(0.01)
        assert agent.web() == {"10.1.0.2", "10.1.0.3"}


async def test_an_endpoint_that_does_not_answer_is_found_out_by_the_agent(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with _running() as agent:
        agent.kernel.unreachable.append(EndpointAddress("10.1.0.2", 8080))
        await trio.sleep(2.0)
        assert agent.web() is None
        port = agent.registry.service_at(*_WEB)
        assert port is not None
        assert "a connect to 10.1.0.2:8080 failed" in agent.connects.describe(port)[1]
        await trio.sleep(12.0)
        assert agent.web() == {"10.1.0.2", "10.1.0.3"}  # nobody has connected by the agent, so nothing was found

        agent.kernel.unreachable.append(EndpointAddress("10.1.0.2", 8080))
        await trio.sleep(2.0)
        one, _ = agent.registry.endpoints(port, 4)
        while agent.balancer.load_of(one, trio.current_time()).health == "healthy":
            pick = agent.balancer.pick(port, agent.registry.endpoints(port, 4), trio.current_time())
            (pick.failed if pick.endpoint is one else pick.release)(trio.current_time())
        await trio.sleep(0.01)
        assert agent.web() == {"10.1.0.3"}


async def test_without_room_a_service_is_left_to_the_agent_until_there_is(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with _running() as agent:
        agent.kernel.room = 2
        agent.apply(service("more", "10.96.0.2"))
        await trio.sleep(0.01)
        more = agent.registry.service_at("10.96.0.2", 80)
        assert more is not None
        assert agent.connects.describe(more) == (False, "the kernel's maps are full")
        figures = {family.name: family for family in agent.metrics.read()}
        assert [sample.value for sample in figures["ringfence_connect_services_left_out"].samples] == [1.0]
        agent.kernel.room = 3
        await trio.sleep(2.0)
        assert agent.connects.describe(more) == (True, "")


async def test_figures_are_the_kernels() -> None:
    async with _running() as agent:
        figures = {family.name: family for family in agent.metrics.read()}
        for name, value in (("balanced", 3), ("refused", 2), ("missed", 1)):
            assert [each.value for each in figures[f"ringfence_connect_{name}_total"].samples] == [value]
        assert EndpointAddress("10.1.0.2", 8080) in dict(agent.kernel.entries[_WEB])
