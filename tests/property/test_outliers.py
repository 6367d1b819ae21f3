"""Ejection, health, locality and the choice, against what must hold whatever happens."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from ca.manifests.traffic import (
    Balancing,
    LoadBalancing,
    LocalityMode,
    LocalityPreference,
    OutlierDetection,
    Traffic,
)
from ca.spiffe import SpiffeId
from node_agent.balance import Balancer, Client, Near, NoEndpoints, Pick
from node_agent.balance.maglev import Maglev
from node_agent.model import Endpoint, EndpointAddress, Locality, ObjectName, ServicePort, Workload

SERVICE = ServicePort(service=ObjectName("shop", "web"), port=80)
_ZONES = ("a", "b")


def _endpoint(number: int) -> Endpoint:
    ip = f"10.1.0.{number}"
    workload = Workload(
        uid=str(number),
        name=ObjectName("shop", f"web-{number}"),
        service_account="web",
        node=f"node-{number % 3}",
        addresses=(ip,),
        identity=SpiffeId.workload("example.org", "shop", "web"),
        enrolled=True,
        locality=Locality(region="r", zone=_ZONES[number % 2]),
    )
    return Endpoint(address=EndpointAddress(ip, 8080), workload=workload)


class Ejection(RuleBasedStateMachine):
    """A service whose endpoints fail, reset and come back in any order."""

    picks: Bundle[Pick] = Bundle("picks")

    @initialize(
        seed=st.integers(0, 2**32),
        count=st.integers(1, 12),
        policy=st.sampled_from(LoadBalancing),
        percent=st.sampled_from([0, 10, 34, 50, 100]),
        panic=st.sampled_from([0, 50]),
        mode=st.sampled_from(LocalityMode),
        slow_start_s=st.sampled_from([0.0, 5.0]),
    )
    def begin(
        self,
        *,
        seed: int,
        count: int,
        policy: LoadBalancing,
        percent: int,
        panic: int,
        mode: LocalityMode,
        slow_start_s: float,
    ) -> None:
        self.balancer = Balancer(rng=Random(seed))
        self.now = 0.0
        self.candidates = tuple(_endpoint(number) for number in range(count))
        self.mode = mode
        self.traffic = Traffic(
            balancing=Balancing(policy=policy, slow_start_s=slow_start_s),
            locality=LocalityPreference(mode=mode),
            panic_threshold_percent=panic,
            outlier=OutlierDetection(
                connect_failures=2,
                early_resets=2,
                base_ejection_s=4.0,
                max_ejection_s=20.0,
                max_ejection_percent=percent,
            ),
        )
        self.client = Client(Near("node-0", "a", "r"), "10.9.0.1", "spiffe://example.org/ns/a/sa/b")
        self.unhealthy: set[int] = set()
        self.probing: dict[int, Pick] = {}
        self.served_at: dict[int, float] = {}
        self.failed_since: dict[int, float] = {}
        self.picked_at: dict[Pick, float] = {}

    def health(self, number: int) -> str:
        return self.balancer.load_of(self.candidates[number], self.now).health

    @rule(seconds=st.floats(0.0, 8.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(target=picks, excluded=st.sets(st.integers(0, 11), max_size=2))
    def pick(self, excluded: set[int]) -> Pick | MultipleResults[Pick]:
        before = [self.health(number) for number in range(len(self.candidates))]
        healthy = {
            n for n, each in enumerate(before) if each == "healthy" or (each == "probing" and n not in self.probing)
        }
        exclude = {self.candidates[number].key for number in excluded if number < len(self.candidates)}
        try:
            pick = self.balancer.pick(
                SERVICE, self.candidates, self.now, traffic=self.traffic, client=self.client, exclude=exclude
            )
        except NoEndpoints:
            left = [n for n, each in enumerate(self.candidates) if each.key not in exclude]
            assert not left or not healthy or self.mode is LocalityMode.STRICT
            return multiple()
        self.picked_at[pick] = self.now
        chosen = self.candidates.index(pick.endpoint)
        assert pick.endpoint.key not in exclude
        is_panic = len(healthy) * 100 < self.traffic.panic_threshold_percent * len(self.candidates)
        if not is_panic and not exclude:
            assert chosen in healthy or self.is_back(chosen, pick), (
                "an ejected endpoint is picked, a healthy one exists"
            )
        if pick.is_probe:
            assert chosen not in self.probing or is_panic or exclude, "two probes at a time"
            self.probing[chosen] = pick
        return pick

    def is_back(self, chosen: int, pick: Pick) -> bool:
        """Whether it is a probe before its time, as its node or zone answered since the connect that failed began."""
        return pick.is_probe and any(
            other != chosen
            and (other % 3 == chosen % 3 or other % 2 == chosen % 2)
            and at >= self.failed_since.get(chosen, 0.0)
            for other, at in self.served_at.items()
        )

    @rule(pick=consumes(picks), seconds=st.floats(0.0, 2.0))
    def serve(self, pick: Pick, seconds: float) -> None:
        self.now += seconds
        self.served_at[self.candidates.index(pick.endpoint)] = self.now
        pick.connected(self.now)
        pick.said_something()
        self.end(pick)

    @rule(pick=consumes(picks), seconds=st.sampled_from([0.0, 1.0, 5.0]))
    def refuse(self, pick: Pick, seconds: float) -> None:
        """Or not answer at all."""
        self.now += seconds
        self.failed_since[self.candidates.index(pick.endpoint)] = self.picked_at[pick]
        pick.failed(self.now)
        self.end(pick)

    @rule(pick=consumes(picks))
    def reset_early(self, pick: Pick) -> None:
        self.served_at[self.candidates.index(pick.endpoint)] = self.now
        pick.connected(self.now)
        pick.reset_early(self.now)
        self.end(pick)

    def end(self, pick: Pick) -> None:
        pick.release(self.now)
        chosen = self.candidates.index(pick.endpoint)
        if self.probing.get(chosen) is pick:
            del self.probing[chosen]

    @rule(number=st.integers(0, 11), is_unhealthy=st.booleans())
    def check(self, number: int, is_unhealthy: bool) -> None:
        if number < len(self.candidates):
            self.balancer.set_unhealthy(self.candidates[number], is_unhealthy, self.now)

    @invariant()
    def never_more_than_the_share_is_ejected(self) -> None:
        if not hasattr(self, "candidates"):
            return
        ejected = [self.health(number) for number in range(len(self.candidates))].count("ejected")
        count = len(self.candidates)
        assert ejected <= min(max(1, count * self.traffic.outlier.max_ejection_percent // 100), count - 1)


TestEjection = Ejection.TestCase


@given(st.sets(st.integers(0, 10_000), min_size=2, max_size=30), st.data())
def test_maglev_keeps_nearly_all_places_when_an_endpoint_leaves(numbers: set[int], data: st.DataObject) -> None:
    """ "Nearly": the paper measures a percent or two of the others' places, with many endpoints; few move more."""
    names = [f"10.0.{number // 256}.{number % 256}:80" for number in sorted(numbers)]
    gone = data.draw(st.sampled_from(names))
    left = [name for name in names if name != gone]
    before, after = Maglev(names, [1.0] * len(names)), Maglev(left, [1.0] * len(left))
    if before.size != after.size:
        return  # a smaller table is another table
    moved = sum(names[before.place(place)] not in (gone, left[after.place(place)]) for place in range(before.size))
    assert moved <= before.size * 0.25


@given(st.lists(st.integers(0, 20), min_size=1, max_size=20).filter(any))
def test_maglev_gives_everybody_its_share(weights: list[int]) -> None:
    names = [f"endpoint-{number}" for number in range(len(weights))]
    table = Maglev(names, [float(weight) for weight in weights])
    counts = [0] * len(weights)
    for place in range(table.size):
        counts[table.place(place)] += 1
    for count, weight in zip(counts, weights, strict=True):
        fair = table.size * weight / sum(weights)
        assert abs(count - fair) <= max(2.0, fair * 0.05) + len(weights)
        assert (count == 0) == (weight == 0)
