"""Two answers of the agent make rates."""

import math
from typing import Any

import pytest

from node_agent.cli.top.rates import quantile, rates


def edge(service: str | None, *, reporter: str = "source", destination: str | None = None, **counts: int) -> Any:
    zero = {"opened": 0, "closed": 0, "sent_bytes": 0, "received_bytes": 0}
    return {"reporter": reporter, "service": service, "destination": destination, **zero, **counts}


def failure(service: str, reason: str, count: int, *, direction: str = "outbound") -> Any:
    return {"service": service, "direction": direction, "close_reason": reason, "count": count}


def answer(at_s: float, *edges: Any, failures: Any = (), **more: Any) -> Any:
    return {"node": "n1", "at_s": at_s, "edges": edges, "failures": failures, **more}


def test_rates_are_differences_by_time_and_edges_of_one_service_are_added_up() -> None:
    before = answer(10.0, edge("shop/web", opened=5, closed=5, sent_bytes=100, received_bytes=50))
    after = answer(
        12.0,
        edge("shop/web", opened=9, closed=6, sent_bytes=300, received_bytes=150),
        edge("shop/web", opened=2, closed=2, sent_bytes=100),  # another client, seen for the first time
        failures=[failure("shop/web", "policy_denied", 4), failure("shop/web", "connect_refused", 1)],
        services=[{"service": "shop/web", "endpoints": 3, "usable": 2, "latency_ms": 1.5}],
    )
    found = rates(before, after)
    assert (found.node, found.interval_s) == ("n1", 2.0)
    (web,) = found.services
    assert (web.name, web.direction, web.connections, web.open) == ("shop/web", "out", 3.0, 3)
    assert (web.to_bytes, web.back_bytes) == (50.0, 150.0)
    assert (web.errors, dict(web.reasons), web.why) == (
        2.5,
        {"policy_denied": 2.0, "connect_refused": 0.5},
        "policy_denied +1",
    )
    assert (web.usable, web.endpoints, web.connect_ms) == (2, 3, 1.5)


def test_connections_of_our_pods_and_to_them_are_told_apart() -> None:
    after = answer(
        1.0,
        edge("shop/web", opened=1),
        edge("shop/web", reporter="destination", opened=2),
        edge(None, destination="shop/db-0", reporter="destination", opened=3),
        edge(None, opened=4),
    )
    found = {(each.name, each.direction): each.connections for each in rates(answer(0.0), after).services}
    assert found == {("shop/web", "out"): 1, ("shop/web", "in"): 2, ("shop/db-0", "in"): 3, ("(unknown)", "out"): 4}


def test_an_agent_that_was_started_again_counts_from_nothing() -> None:
    before = answer(100.0, edge("a/b", opened=1000), failures=[failure("a/b", "no_endpoint", 50)])
    after = answer(101.0, edge("a/b", opened=3), failures=[failure("a/b", "no_endpoint", 1)])
    (service,) = rates(before, after).services
    assert (service.connections, service.errors) == (3.0, 1.0)
    (service,) = rates(before, answer(2.0, edge("a/b", opened=4))).services  # and its clock, too
    assert service.connections == 2.0


def test_a_failure_without_a_known_service_is_shown_with_the_other_unknown_ones() -> None:
    found = rates(answer(0.0), answer(1.0, edge(None, opened=1), failures=[failure("unknown", "x", 1)]))
    assert [(each.name, each.errors) for each in found.services] == [("(unknown)", 1.0)]


def test_a_failure_without_a_service_is_shown_with_the_workload_that_it_was_for() -> None:
    """As the connections to it are: inbound, nobody says which service was asked for."""
    edges = [edge(None, reporter="destination", destination="shop/web", opened=2)]
    row = failure("unknown", "connect_refused", 1, direction="inbound") | {"destination_workload": "shop/web"}
    found = rates(answer(0.0), answer(1.0, *edges, failures=[row]))
    assert [(each.name, each.connections, each.errors) for each in found.services] == [("shop/web", 2.0, 1.0)]


@pytest.mark.parametrize(
    ("buckets", "share", "seconds"),
    [
        ([], 0.5, None),
        ([(0.001, 0), (math.inf, 0)], 0.5, None),
        ([(0.001, 10), (0.002, 10), (math.inf, 10)], 0.5, 0.0005),
        ([(0.001, 0), (0.002, 10), (math.inf, 10)], 0.5, 0.0015),
        ([(0.001, 5), (0.002, 5), (math.inf, 10)], 0.99, 0.002),
        ([(0.001, 50), (0.002, 100), (math.inf, 100)], 0.99, 0.00198),
    ],
)
def test_quantiles_are_spread_evenly_within_a_bucket(buckets: Any, share: float, seconds: float | None) -> None:
    assert quantile(buckets, share) == (None if seconds is None else pytest.approx(seconds))


def test_quantiles_are_of_outbound_connects_of_this_interval() -> None:
    def connect(up_to_1ms: int, total: int) -> Any:
        return [
            {"direction": "outbound", "le": "0.001", "count": up_to_1ms},
            {"direction": "outbound", "le": "+Inf", "count": total},
            {"direction": "inbound", "le": "0.001", "count": 7},
        ]

    found = rates(answer(0.0, connect=connect(100, 100)), answer(1.0, connect=connect(100, 200)))
    assert found.connect_p50_s == 0.001  # all of this interval took longer than the last bound
