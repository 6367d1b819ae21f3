"""Who is checked, by whose hand and when; the network is a fake, the time virtual."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from ca.manifests.traffic import DEFAULT, Balancing, HealthCheck, Traffic
from ca.spiffe import SpiffeId
from node_agent.balance import Balancer
from node_agent.balance.limits import Ledger, LocalLedger
from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.frames import Check, Open, Verdict
from node_agent.model import Endpoint, EndpointAddress, ObjectName, ServicePort, Workload
from node_agent.proxy.health_checks import HealthChecker
from node_agent.proxy.pod import Pod
from node_agent.telemetry.metrics import Metrics
from node_agent.tunnel import Dialler, TunnelKey

_WEB = ServicePort(service=ObjectName("shop", "web"), port=80)
_CHECK = HealthCheck(interval_s=10.0, timeout_s=1.0, unhealthy_threshold=2, healthy_threshold=1)
_FAILING = frozenset({CloseReason.CONNECT_REFUSED, CloseReason.VERDICT_TIMEOUT})
_IN_USE_S = 300.0


def _workload(name: str, ip: str) -> Workload:
    return Workload(
        uid=name,
        name=ObjectName("shop", name),
        service_account=name,
        node="n",
        addresses=(ip,),
        identity=SpiffeId.workload("example.org", "shop", name),
        enrolled=True,
        labels={"name": name},
    )


def _pod(name: str) -> Pod:
    network = SimpleNamespace(upstream_socket=lambda _ip: None)
    return Pod(workload=_workload(name, "10.1.9.9"), network=cast(Any, network), listeners=cast(Any, None))


@dataclass
class _World:
    """Registry, identities and tunnels at once; ``answer`` is what comes of a check of an address."""

    endpoints_: tuple[Endpoint, ...]
    traffic_: Traffic
    has_identity: bool = True
    revoked: SpiffeId | None = None
    denied: tuple[str, ...] = ()
    answer: Callable[[str], CloseReason] = lambda _ip: CloseReason.OK
    takes_s: float = 0.01

    def __post_init__(self) -> None:
        self.asked: list[tuple[float, str, str]] = []  # when, by which pod, which address
        self.running = 0
        self.most_running = 0
        self.forgotten: list[str] = []

    def endpoints(self, service: ServicePort, ip_version: int) -> tuple[Endpoint, ...]:
        assert (service, ip_version) == (_WEB, 4)
        return self.endpoints_

    def traffic(self, _service: ServicePort) -> Traffic:
        return self.traffic_

    def current(self, _identity: SpiffeId) -> object:
        return (
            SimpleNamespace(client_context=None, not_after=datetime.now(UTC), serial=1) if self.has_identity else None
        )

    def admit_check_of(self, own: SpiffeId, destination: SpiffeId) -> None:
        if self.revoked in (own, destination):
            raise ConnectionFailure(CloseReason.IDENTITY_REVOKED)

    def forget(self, uid: str) -> None:
        self.forgotten.append(uid)

    async def check(self, key: TunnelKey, message: Open, dialler: Dialler) -> Verdict:
        assert message.check == Check(tls=False, timeout_s=1.0)
        assert message.source.ip == "10.1.9.9"
        assert message.destination.ip == key.endpoint_ip
        dialler.make_socket(key.endpoint_ip)
        self.asked.append((trio.current_time(), key.source_uid, key.endpoint_ip))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await trio.sleep(self.takes_s)
        finally:
            self.running -= 1
        reason = CloseReason.POLICY_DENIED if key.source_uid in self.denied else self.answer(key.endpoint_ip)
        if reason is CloseReason.CERTIFICATE_UNTRUSTED:
            raise ConnectionFailure(reason)
        return Verdict(reason=reason, is_check=True)


class _Agent:
    """One process that checks."""

    def __init__(self, world: _World, ledger: Ledger | None = None) -> None:
        self.balancer = Balancer(rng=cast(Any, SimpleNamespace(random=lambda: 0.5)))
        self.metrics = Metrics()
        part = cast(Any, world)
        self.checker = HealthChecker(
            registry=part,
            router=part,
            balancer=self.balancer,
            identities=part,
            tunnels=part,
            gate=part,
            drawn=lambda: 0.5,
            metrics=self.metrics,
            failing=_FAILING,
            ledger=ledger,
        )

    def health(self, endpoint: Endpoint) -> tuple[str, str | None]:
        load = self.balancer.load_of(endpoint, trio.current_time())
        return load.health, load.why

    def results(self) -> dict[str, float]:
        for family in self.metrics.read():
            if family.name == "ringfence_health_checks_total":
                return {sample.values[0]: sample.value for sample in family.samples}
        raise AssertionError


@asynccontextmanager
async def _running(*agents: _Agent) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        for agent in agents:
            nursery.start_soon(agent.checker.run)
        yield
        nursery.cancel_scope.cancel()


def _world(count: int = 2, **changes: Any) -> _World:
    endpoints = tuple(
        Endpoint(
            address=EndpointAddress(f"10.1.0.{number}", 8080), workload=_workload(f"web-{number}", f"10.1.0.{number}")
        )
        for number in range(count)
    )
    return _World(endpoints, replace(DEFAULT, health_check=_CHECK), **changes)


_REFUSED = (CloseReason.CONNECT_REFUSED, "health check: connect_refused")


async def test_a_service_is_checked_from_its_first_use_to_some_minutes_after_its_last(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = _world(1, answer=lambda _: _REFUSED[0])
    agent, pod = _Agent(world), _pod("cart")
    async with _running(agent):
        await trio.sleep(1000)
        assert not world.asked
        began = trio.current_time()
        agent.checker.used(pod, _WEB, 4)
        await trio.sleep(100)
        assert agent.health(world.endpoints_[0]) == ("unhealthy", _REFUSED[1])
        agent.checker.used(pod, _WEB, 4)
        await trio.sleep(1000)
        assert [round(at - began - 5) for at, _, _ in world.asked] == list(range(0, 400, 10))
        assert agent.health(world.endpoints_[0]) == ("healthy", None), "forgotten"
        assert agent.results() == {"success": 0, "failure": 40, "no_result": 0}


@pytest.mark.parametrize("why", ["no identity", "an impostor", "revoked there", "cart", "web-0"])
async def test_what_says_nothing_about_the_endpoint_changes_nothing(
    why: str, autojump_clock: trio.testing.MockClock
) -> None:
    reason = CloseReason.IDENTITY_REVOKED if why == "revoked there" else CloseReason.CERTIFICATE_UNTRUSTED
    revoked = SpiffeId.workload("example.org", "shop", why) if " " not in why else None
    world = _world(1, has_identity=why != "no identity", answer=lambda _: reason, revoked=revoked)
    agent = _Agent(world)
    async with _running(agent):
        agent.checker.used(_pod("cart"), _WEB, 4)
        await trio.sleep(99)
    assert agent.health(world.endpoints_[0]) == ("healthy", None)
    assert agent.results() == {"success": 0, "failure": 0, "no_result": 10}
    assert bool(world.asked) is (why in ("an impostor", "revoked there"))


async def test_no_more_than_64_checks_run_at_a_time_and_all_get_their_turn(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = _world(200, takes_s=1.0)
    agent = _Agent(world)
    async with _running(agent):
        agent.checker.used(_pod("cart"), _WEB, 4)
        await trio.sleep(9.9)
    assert world.most_running == 64
    assert sorted(ip for _, _, ip in world.asked) == sorted(each.address.ip for each in world.endpoints_)


async def test_an_agent_that_does_not_answer_is_a_failure_after_twice_the_timeout(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = _world(1, takes_s=1000.0)
    agent = _Agent(world)
    async with _running(agent):
        agent.checker.used(_pod("cart"), _WEB, 4)
        await trio.sleep(6.9)
        assert agent.results()["failure"] == 0
        await trio.sleep(10.2)
        assert agent.results()["failure"] == 2
    assert agent.health(world.endpoints_[0]) == ("unhealthy", "health check: verdict_timeout")


async def test_a_pod_that_goes_ends_the_checks_that_run_for_it_and_another_takes_over(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = _world(1, takes_s=1.5)
    agent, first, second = _Agent(world), _pod("cart"), _pod("other")
    async with _running(agent):
        agent.checker.used(second, _WEB, 4)
        agent.checker.used(first, _WEB, 4)
        await trio.sleep(5.5)
        assert world.running == 1
        first.gone.set()
        await trio.testing.wait_all_tasks_blocked()
        assert world.running == 0
        assert world.forgotten == ["cart"], "what came back meanwhile would keep its namespace"
        assert agent.results() == {"success": 0, "failure": 0, "no_result": 1}
        await trio.sleep(12)
        assert [pod for _, pod, _ in world.asked] == ["cart", "other"]
        second.gone.set()
        await trio.sleep(100)
        assert len(world.asked) == 2


async def test_a_workload_that_a_policy_denies_does_not_blind_the_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = _world(1, answer=lambda _: _REFUSED[0], denied=("thief", "thief-2"))
    agent = _Agent(world)
    async with _running(agent):
        agent.checker.used(_pod("cart"), _WEB, 4)
        agent.checker.used(_pod("thief"), _WEB, 4)  # the last one, and so the first to be asked for
        await trio.sleep(9)
        assert [pod for _, pod, _ in world.asked] == ["thief", "cart"]
        assert agent.results() == {"success": 0, "failure": 1, "no_result": 0}


async def test_if_all_are_denied_nothing_is_known(autojump_clock: trio.testing.MockClock) -> None:
    names = ("thief", "thief-2", "thief-3", "thief-4", "thief-5")
    world = _world(1, denied=names)
    agent = _Agent(world)
    async with _running(agent):
        for name in names:
            agent.checker.used(_pod(name), _WEB, 4)
        await trio.sleep(9)
        assert [pod for _, pod, _ in world.asked] == ["thief-5", "thief-4", "thief-3"]
        assert agent.results() == {"success": 0, "failure": 0, "no_result": 1}
    assert agent.health(world.endpoints_[0]) == ("healthy", None)


async def test_endpoints_that_are_not_ready_or_not_in_the_subset_are_left_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = _world(3)
    agent = _Agent(world)
    world.endpoints_ = (replace(world.endpoints_[0], ready=False), *world.endpoints_[1:])
    world.traffic_ = replace(world.traffic_, balancing=Balancing(subset={"name": "web-2"}))
    async with _running(agent):
        agent.checker.used(_pod("cart"), _WEB, 4)
        await trio.sleep(99)
        assert {ip for _, _, ip in world.asked} == {"10.1.0.2"}
        world.traffic_ = replace(DEFAULT, health_check=_CHECK)
        await trio.sleep(99)
    assert {ip for _, _, ip in world.asked} == {"10.1.0.1", "10.1.0.2"}


async def test_of_several_workers_one_checks_and_all_know(autojump_clock: trio.testing.MockClock) -> None:
    world = _world(1, answer=lambda _: _REFUSED[0])
    (endpoint,) = world.endpoints_
    ledger = LocalLedger()
    one, two, late = _Agent(world, ledger), _Agent(world, ledger), _Agent(world, ledger)
    async with _running(one, two, late):
        one.checker.used(_pod("cart"), _WEB, 4)
        await trio.sleep(0.1)
        two.checker.used(_pod("cart"), _WEB, 4)
        await trio.sleep(26)
        assert one.health(endpoint) == ("unhealthy", _REFUSED[1])
        assert two.health(endpoint) == ("unhealthy", "health check of another worker")
        late.checker.used(_pod("cart"), _WEB, 4)
        assert late.health(endpoint)[0] == "unhealthy", "before its first connection"
        assert len(world.asked) == 3
        assert two.results() == late.results() == {"success": 0, "failure": 0, "no_result": 0}

        world.answer = lambda _: CloseReason.OK
        await trio.sleep(20)
        assert {agent.health(endpoint) for agent in (one, two, late)} == {("healthy", None)}
