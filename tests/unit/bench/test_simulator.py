"""What clients feel while endpoints fail: the default policy is better than those that do not look."""

import math
from functools import cache

import pytest

from bench.simulator.feelings import Feelings, quantile
from bench.simulator.scenarios import SCENARIOS, Size
from bench.simulator.world import World
from ca.manifests.traffic import Balancing, LoadBalancing, Traffic

# As in the benchmark, but smaller; the times that agents take to notice stay what they are.
_SMALL = Size(endpoints=60, agents=4, seconds=10.0)


@cache
def _felt(scenario: str, policy: LoadBalancing, *, seed: int = 1, size: Size = _SMALL) -> Feelings:
    return World(SCENARIOS[scenario], Traffic(balancing=Balancing(policy=policy)), size=size, seed=seed).run()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_least_latency_beats_round_robin_and_random(scenario: str) -> None:
    ours = _felt(scenario, LoadBalancing.LEAST_LATENCY)
    assert ours.quantile(0.5) < 0.25, "most clients feel nothing"
    for policy in (LoadBalancing.ROUND_ROBIN, LoadBalancing.RANDOM):
        theirs = _felt(scenario, policy)
        assert len(theirs.all) + theirs.cut == len(ours.all) + ours.cut, "the same connections"
        assert ours.quantile(0.99) < theirs.quantile(0.99), policy


def test_endpoints_that_hang_are_left_within_two_seconds() -> None:
    felt = _felt("stuck", LoadBalancing.LEAST_LATENCY)
    hung = int(_SMALL.seconds * 0.25)
    p99 = felt.over_time(0.99)[hung + 2 : int(_SMALL.seconds * 0.75)]
    assert all(each is not None and each < 2.0 for each in p99), p99
    assert felt.errors == felt.cut == 0


@pytest.mark.parametrize("scenario", ["slow", "failing", "flapping"])
def test_one_endpoint_that_fails_costs_nobody_the_answer_but_those_that_it_was_serving(scenario: str) -> None:
    felt = _felt(scenario, LoadBalancing.LEAST_LATENCY)
    assert felt.errors == 0
    assert (felt.cut > 0) == (scenario != "slow")


def test_a_zone_that_is_cut_off_is_left_within_seconds() -> None:
    felt = _felt("zone", LoadBalancing.LEAST_LATENCY)
    cut = int(_SMALL.seconds * 0.25)
    p90 = felt.over_time(0.9)
    assert all(each is not None and each < 1.0 for each in p90[cut + 2 : int(_SMALL.seconds * 0.75)]), p90


def test_a_run_can_be_repeated_to_the_last_figure() -> None:
    size = Size(endpoints=12, agents=3, seconds=4.0)
    runs = [_felt("flapping", LoadBalancing.LEAST_LATENCY, seed=seed, size=size).all for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_who_had_no_answer_is_not_quick() -> None:
    felt = Feelings(2.0)
    for took_s in (0.1, 0.2, None):
        felt.add(0.5, took_s)
    assert (felt.quantile(0.5), felt.errors) == (0.2, 1)
    assert math.isinf(felt.quantile(0.99))
    assert felt.over_time(0.99) == [None, None]
    assert math.isinf(quantile([], 0.5))
