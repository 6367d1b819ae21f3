"""The balancer against an oracle that keeps every pick and every sample."""

from math import exp
from random import Random

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from ca.manifests.traffic import Balancing, LoadBalancing, OutlierDetection, Traffic
from node_agent.balance import Balancer, EndpointLoad, NoEndpoints, Pick
from node_agent.balance.latency import DECAY_S, REFUSAL_DECAY_S, PeakEwma
from node_agent.model import Endpoint, EndpointAddress, ObjectName, ServicePort

SERVICE = ServicePort(service=ObjectName("shop", "web"), port=80)
CALM = Traffic(outlier=OutlierDetection(enabled=False))


def endpoint(number: int, ready: bool) -> Endpoint:
    return Endpoint(address=EndpointAddress(f"10.1.0.{number}", 8080), workload=None, ready=ready)


class Draws(Random):
    """Remembers what it drew, so that the oracle knows which two were looked at."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.drawn: list[float] = []

    def random(self) -> float:
        self.drawn.append(super().random())
        return self.drawn[-1]


class LeastLatency(RuleBasedStateMachine):
    picks: Bundle[Pick] = Bundle("picks")

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        self.rng = Draws(seed)
        self.balancer = Balancer(rng=self.rng)
        self.now = 0.0
        self.picked_at: dict[int, float] = {}
        self.open: dict[EndpointAddress, int] = {}
        self.latency: dict[EndpointAddress, tuple[float, float, float]] = {}
        self.no_verdict: dict[EndpointAddress, set[int]] = {}
        self.waiting_since: dict[EndpointAddress, float] = {}
        self.not_ready: set[EndpointAddress] = set()

    @rule(seconds=st.floats(0.0, 5.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(target=picks, ready=st.lists(st.booleans(), min_size=1, max_size=5).filter(any))
    def pick(self, ready: list[bool]) -> Pick:
        candidates = tuple(endpoint(number, each) for number, each in enumerate(ready))
        costs = {each.address: self.balancer.load_of(each, self.now) for each in candidates}
        for each in candidates:
            if each.ready and each.address in self.not_ready:
                self.latency.pop(each.address, None)
                costs[each.address] = costs[each.address]._replace(latency_s=None)
        for address, load in costs.items():
            if self.no_verdict.get(address):
                waited_s = self.now - self.waiting_since[address]
                if waited_s > (0.01 if load.latency_s is None else load.latency_s):
                    costs[address] = load._replace(latency_s=waited_s)
        self.not_ready = {each.address for each in candidates if not each.ready}
        self.rng.drawn.clear()
        pick = self.balancer.pick(SERVICE, candidates, self.now, traffic=CALM)
        usable = [each for each in candidates if each.ready]
        assert pick.endpoint in usable
        if len(usable) > 1:
            first = int(self.rng.drawn[-2] * len(usable))
            others = [n for n in range(len(usable)) if n != first]
            second = others[int(self.rng.drawn[-1] * len(others))]
            pair = {usable[first].address, usable[second].address}
            assert len(pair) == 2
            assert pick.endpoint.address in pair
            (other,) = pair - {pick.endpoint.address}
            assert cost(costs[pick.endpoint.address], costs[other]) <= cost(costs[other], costs[pick.endpoint.address])
        self.picked_at[id(pick)] = self.now
        if not self.no_verdict.get(pick.endpoint.address):
            self.waiting_since[pick.endpoint.address] = self.now
        self.no_verdict.setdefault(pick.endpoint.address, set()).add(id(pick))
        self.open[pick.endpoint.address] = self.open.get(pick.endpoint.address, 0) + 1
        return pick

    @rule(pick=picks)
    def connected(self, pick: Pick) -> None:
        pick.connected(self.now)
        self.verdict(pick)
        self.sample(pick.endpoint.address, self.now - self.picked_at[id(pick)])

    @rule(pick=consumes(picks))
    def failed(self, pick: Pick) -> None:
        waited_s = self.now - self.picked_at[id(pick)]
        if waited_s < 1.0:
            estimate, at, decay_s = self.latency.get(pick.endpoint.address, (0.0, self.now, DECAY_S))
            penalty = max(1.0, estimate * exp((at - self.now) / decay_s))
            self.latency[pick.endpoint.address] = (penalty, self.now, REFUSAL_DECAY_S)
        else:
            self.sample(pick.endpoint.address, waited_s)
        self.end(pick, failed=True)

    @rule(pick=consumes(picks))
    def released(self, pick: Pick) -> None:
        self.end(pick, failed=False)

    def end(self, pick: Pick, *, failed: bool) -> None:
        self.verdict(pick)
        (pick.failed if failed else pick.release)(self.now)
        pick.release(self.now)
        pick.failed(self.now)
        self.open[pick.endpoint.address] -= 1

    def verdict(self, pick: Pick) -> None:
        waiting = self.no_verdict[pick.endpoint.address]
        if id(pick) in waiting:
            waiting.remove(id(pick))
            self.waiting_since[pick.endpoint.address] = self.now

    def sample(self, address: EndpointAddress, value: float) -> None:
        estimate, at, decay_s = self.latency.get(address, (0.0, self.now, DECAY_S))
        if value < estimate:
            weight = exp(-(self.now - at) / decay_s)
            value = estimate * weight + value * (1 - weight)
        self.latency[address] = (value, self.now, DECAY_S)

    @invariant()
    def counts_agree_and_are_never_negative(self) -> None:
        for address, expected in self.open.items():
            load = self.balancer.load_of(Endpoint(address=address, workload=None), self.now)
            assert load.open_connections == expected >= 0
            assert (load.latency_s is None) == (address not in self.latency) or not expected
            if load.latency_s is not None:
                estimate, at, decay_s = self.latency[address]
                assert abs(load.latency_s - estimate * exp(-(self.now - at) / decay_s)) < 1e-9


def cost(load: EndpointLoad, other: EndpointLoad) -> float:
    """What the documentation says: latency counts when it is known of both."""
    if load.latency_s is None or other.latency_s is None:
        return load.open_connections + 1.0
    return (load.open_connections + 1.0) * load.latency_s


TestLeastLatency = LeastLatency.TestCase


@given(st.integers(1, 12), st.integers(0, 60), st.data())
def test_round_robin_counts_differ_by_at_most_one(count: int, picks: int, data: st.DataObject) -> None:
    ready = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    candidates = tuple(endpoint(number, each) for number, each in enumerate(ready))
    balancer = Balancer(rng=Random(0))
    traffic = Traffic(balancing=Balancing(policy=LoadBalancing.ROUND_ROBIN))
    counts = {each.address: 0 for each in candidates if each.ready}
    for _ in range(picks):
        try:
            counts[balancer.pick(SERVICE, candidates, 0.0, traffic=traffic).endpoint.address] += 1
        except NoEndpoints:
            assert not counts
    if counts:
        assert max(counts.values()) - min(counts.values()) <= 1


@given(st.lists(st.tuples(st.floats(0.0, 30.0), st.floats(0.0, 10.0)), min_size=1))
def test_the_estimate_is_never_above_the_worst_sample_nor_negative(samples: list[tuple[float, float]]) -> None:
    now = 0.0
    estimate = PeakEwma(samples[0][1], now)
    worst = samples[0][1]
    for wait, sample in samples:
        now += wait
        estimate.observe(sample, now)
        worst = max(worst, sample)
        assert sample * (1 - 1e-9) <= estimate.at(now) <= worst * (1 + 1e-9)
        assert estimate.at(now + 100.0) <= estimate.at(now)
