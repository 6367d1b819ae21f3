"""The benchmark's judgement: which rival counts, which way is better, what counts as not measured."""

from typing import Any

import pytest

from bench import alone, measures, targets


def verdict(samples: targets.Samples, name: str) -> dict[str, Any]:
    return next(each for each in targets.judge(samples) if each["measure"] == name)


def test_where_less_is_better_the_lower_rival_is_the_reference() -> None:
    samples = {"latency": {"ringfence": {"p50_us": [90]}, "envoy": {"p50_us": [120]}, "haproxy": {"p50_us": [100]}}}
    found = verdict(samples, "latency p50, 1 connection")
    assert found["reference_is"] == "haproxy"
    assert found["ratio"] == pytest.approx(0.9)
    assert (found["met"], found["stretch_met"]) == (True, True)


def test_where_more_is_better_the_higher_rival_is_the_reference() -> None:
    rates = {"ringfence": 2000, "envoy": 1000, "haproxy": 700, "direct": 90_000}
    samples = {"conns": {peer: {"connections_per_s": [rate]} for peer, rate in rates.items()}}
    found = verdict(samples, "new connections/s")
    assert found["reference_is"] == "envoy"
    assert found["ratio"] == pytest.approx(2.0)
    assert (found["met"], found["stretch_met"]) == (True, False)


def test_the_ratio_is_of_medians_and_the_spread_of_rounds() -> None:
    samples = {"latency": {"ringfence": {"p50_us": [10, 30, 20]}, "envoy": {"p50_us": [10, 10, 40]}}}
    found = verdict(samples, "latency p50, 1 connection")
    assert found["ratio"] == pytest.approx(2.0)
    assert found["spread"] == [0.5, 3.0]
    assert found["met"] is False


def test_an_absolute_target_is_judged_by_its_limit() -> None:
    samples = {"memory": {"ringfence": {"larger_idle_rss_mb": [36.0]}, "haproxy": {"larger_idle_rss_mb": [16.0]}}}
    found = verdict(samples, "idle memory of an agent <= 45 MB")
    assert found["ratio"] == pytest.approx(0.8)
    assert (found["met"], found["stretch_met"]) == (True, False)


def test_a_target_may_name_whom_it_is_against() -> None:
    rates = {"ringfence": 9_500, "direct": 10_000, "envoy": 90_000}
    samples = {"lane": {peer: {"conns_connections_per_s": [rate]} for peer, rate in rates.items()}}
    found = verdict(samples, "same-node lane: new connections/s, beside direct")
    assert (found["ratio"], found["reference_is"]) == (pytest.approx(0.95), "direct")
    assert (found["met"], found["stretch_met"]) == (True, False)


def test_what_is_to_beat_another_way_does_not_by_being_as_good_as_its_limit_alone() -> None:
    samples = {"connectlb": {"ringfence": {"connect_us": [14], "adds_us": [4]}, "iptables": {"connect_us": [12]}}}
    assert verdict(samples, "connect-time balancing adds <= 5 us to a connect")["met"] is True
    assert verdict(samples, "connect-time balancing, beside iptables DNAT")["met"] is False


def test_every_figure_with_a_target_is_of_a_measure_that_is_there() -> None:
    known = {*measures.MEASURES, *alone.ALONE, "memory", "workers"}
    assert {each.figure.partition(".")[0] for each in targets.TARGETS} <= known


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    only_ours = {"latency": {"ringfence": {"p50_us": [90]}}}
    for samples in ({}, only_ours):
        for found in targets.judge(samples):
            assert (found["ratio"], found["met"]) == (None, None)
