"""Many agents' balancers against a model of the endpoints, event by event.

arrival > pick > connect --answered--> served > felt
                   |  ^
                   +--+ another endpoint, within attempts and budget (as node_agent.proxy.upstream does)
"""

import heapq
from collections.abc import Callable
from random import Random
from typing import Final

from bench.simulator.feelings import Feelings
from bench.simulator.scenarios import LOST_ZONE, Scenario, Size
from bench.simulator.servers import CAPACITY_PER_S, Mode, Server
from ca.manifests.traffic import Traffic
from ca.spiffe import SpiffeId
from node_agent.balance import Balancer, Client, Near, NoEndpoints, Pick
from node_agent.model import Endpoint, EndpointAddress, EndpointKey, Locality, ObjectName, ServicePort, Workload

_SERVICE: Final = ServicePort(service=ObjectName("shop", "web"), port=80)
_CONNECT_TIMEOUT_S: Final = 5.0  # the agent's default
_ATTEMPTS: Final = 3  # likewise
_FIRST_RETRANSMISSION_S: Final = 1.0
_CLIENTS_OF_AN_AGENT: Final = 100
_ACCEPTING: Final = frozenset({Mode.UP, Mode.STUCK})


class _Agent:
    """One node's balancer, and its clients."""

    def __init__(self, number: int, zone: str, rng: Random) -> None:
        self.zone = zone
        self.balancer = Balancer(rng=rng)
        near = Near(f"node-{number}", zone, "region")
        self.clients = [Client(near, f"10.0.{number}.{each}") for each in range(_CLIENTS_OF_AN_AGENT)]


class World:
    """One run: a scenario, a policy, a seed."""

    def __init__(self, scenario: Scenario, traffic: Traffic, *, size: Size, seed: int) -> None:
        # Each has its own draws: the servers and the clients are the same ones whatever the policy.
        self._arrivals = Random(f"{seed} arrivals")
        self._size = size
        self.traffic = traffic
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self.now = 0.0
        self.feelings = Feelings(size.seconds)
        servers = [
            Server(size.zone(number), Random(f"{seed} server {number}"), self.later) for number in range(size.endpoints)
        ]
        self.endpoints = tuple(_endpoint(number, each.zone) for number, each in enumerate(servers))
        self.servers = {each.address: server for each, server in zip(self.endpoints, servers, strict=True)}
        self._agents = [
            _Agent(number, size.zone(number), Random(f"{seed} agent {number}")) for number in range(size.agents)
        ]
        self._gap_s = 1.0 / (size.endpoints * CAPACITY_PER_S * size.load)
        for at, change in scenario.changes(servers, size.seconds):
            self.later(at, change)

    def run(self) -> Feelings:
        """Let it happen, until the last connection has ended."""
        self.later(0.0, self._arrive)
        while self._events:
            self.now, _, event = heapq.heappop(self._events)
            event()
        return self.feelings

    def later(self, after_s: float, event: Callable[[], None]) -> None:
        """Let something happen after so many seconds."""
        self._number += 1
        heapq.heappush(self._events, (self.now + after_s, self._number, event))

    def _arrive(self) -> None:
        if self.now >= self._size.seconds:
            return
        self.later(self._arrivals.expovariate(1.0) * self._gap_s, self._arrive)
        agent = self._arrivals.choice(self._agents)
        client = self._arrivals.choice(agent.clients)
        if agent.zone != LOST_ZONE or not self._is_cut_off(agent):
            _Connection(self, agent, client).attempt()

    def _is_cut_off(self, agent: _Agent) -> bool:
        """The clients of a zone that is lost are lost with it."""
        return all(each.mode is Mode.SILENT for each in self.servers.values() if each.zone == agent.zone)


class _Connection:
    """One connection of one client."""

    def __init__(self, world: World, agent: _Agent, client: Client) -> None:
        self._world = world
        self._agent = agent
        self._client = client
        self._began = world.now
        self._tried: set[EndpointKey] = set()
        self.down_bytes = 0

    def attempt(self) -> None:
        world = self._world
        try:
            pick = self._agent.balancer.pick(
                _SERVICE,
                world.endpoints,
                world.now,
                traffic=world.traffic,
                client=self._client,
                exclude=self._tried,
            )
        except NoEndpoints:
            self._felt(False)
            return
        self._knock(pick, world.servers[pick.endpoint.address], waited_s=0.0, again_s=_FIRST_RETRANSMISSION_S)

    def _knock(self, pick: Pick, server: Server, *, waited_s: float, again_s: float) -> None:
        """Send a SYN."""
        later, left_s = self._world.later, _CONNECT_TIMEOUT_S - waited_s
        answer_s = server.connect_s(self._agent.zone)
        if server.mode is Mode.REFUSES:
            later(answer_s, lambda: self._failed(pick))
        elif (server.mode in _ACCEPTING and not server.is_full) and answer_s < left_s:
            later(answer_s, lambda: self._connected(pick, server))
        elif again_s < left_s:
            later(again_s, lambda: self._knock(pick, server, waited_s=waited_s + again_s, again_s=2 * again_s))
        else:
            later(left_s, lambda: self._failed(pick))

    def _connected(self, pick: Pick, server: Server) -> None:
        if server.mode not in _ACCEPTING:
            self._failed(pick)
            return
        pick.connected(self._world.now)
        pick.carries(self, self._world.now)

        def ended(is_answered: bool) -> None:
            if is_answered:
                self.down_bytes = 1
                pick.said_something()
                self._felt(True)
            else:
                pick.reset_early(self._world.now)
                self._world.feelings.cut += 1
            pick.release(self._world.now)

        server.serve(ended)

    def _failed(self, pick: Pick) -> None:
        pick.failed(self._world.now)
        self._tried.add(pick.endpoint.key)
        may_retry = len(self._tried) < _ATTEMPTS and self._agent.balancer.may_retry(
            _SERVICE, self._world.traffic, self._world.now
        )
        if may_retry:
            self.attempt()
        else:
            self._felt(False)

    def _felt(self, is_answered: bool) -> None:
        self._world.feelings.add(self._began, self._world.now - self._began if is_answered else None)


def _endpoint(number: int, zone: str) -> Endpoint:
    ip = f"10.1.{number // 250}.{number % 250 + 1}"
    workload = Workload(
        uid=str(number),
        name=ObjectName("shop", f"web-{number}"),
        service_account="web",
        node=f"node-{number}",
        addresses=(ip,),
        identity=SpiffeId.workload("example.org", "shop", "web"),
        enrolled=True,
        locality=Locality(region="region", zone=zone),
    )
    return Endpoint(address=EndpointAddress(ip, 8080), workload=workload)
