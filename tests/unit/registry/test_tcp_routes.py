"""Which TCPRoute splits a service port, and into what."""

from dataclasses import replace

import pytest

from ca.manifests import ObjectKey, Service, ServicePortSpec, TCPRoute
from ca.manifests.tcp_route import Backend, ParentPort
from node_agent.model import ObjectName, ServicePort
from node_agent.registry import Registry, Update

WEB = ServicePort(service=ObjectName("shop", "web"), port=80)


def _route(name: str, *weights: int, port: int | None = None, created: str = "") -> TCPRoute:
    backends = tuple(Backend(f"{name}-{number}", 80, weight) for number, weight in enumerate(weights))
    return TCPRoute(namespace="shop", name=name, created=created, parents=(ParentPort("web", port),), backends=backends)


def _registry(*routes: TCPRoute) -> Registry:
    registry = Registry("example.org")
    service = Service(namespace="shop", name="web", ports=(ServicePortSpec("", 80, 80),))
    registry.apply(Update(upserts=(service, *routes)))
    return registry


@pytest.mark.parametrize(
    ("draw", "backend"), [(0.0, "canary-0"), (0.749, "canary-0"), (0.75, "canary-2"), (0.999, "canary-2")]
)
def test_weights_are_shares_and_none_is_nothing(draw: float, backend: str) -> None:
    split = _registry(_route("canary", 3, 0, 1)).split(WEB)
    assert split is not None
    assert split.backend(draw) == (ObjectName("shop", backend), 80)


def test_without_any_weight_there_is_no_backend() -> None:
    split = _registry(_route("none", 0, 0)).split(WEB)
    assert split is not None
    assert split.backend(0.5) is None


def test_one_for_the_port_wins_then_the_oldest_and_the_other_is_reported() -> None:
    registry = _registry(
        _route("wide", 1, created="2020"),
        _route("narrow", 1, port=80, created="2022"),
        _route("late", 1, created="2023"),
    )
    split = registry.split(WEB)
    assert split is not None
    assert split.route == ("shop", "narrow")
    assert registry.conflicts() == (
        "TCPRoutes shop/wide and shop/late both split service shop/web; shop/wide is in force",
    )


def test_a_route_that_goes_or_moves_is_out_of_force() -> None:
    route = _route("canary", 1)
    registry = _registry(route)
    changes = registry.apply(Update(upserts=(replace(route, parents=(ParentPort("other", None),)),)))
    assert WEB.service in changes.services_changed
    assert registry.split(WEB) is None
    registry.apply(Update(upserts=(route,)))
    assert registry.split(WEB) is not None
    registry.apply(Update(deletes=(ObjectKey("TCPRoute", "shop", "canary"),)))
    assert registry.split(WEB) is None


def test_what_is_in_force_does_not_depend_on_the_order_of_arrival() -> None:
    routes = [
        _route("narrow", 1, port=80, created="2022"),
        _route("late", 1, created="2023"),
        _route("wide", 1, created="2020"),
        _route("later", 1, port=80, created="2024"),
    ]
    at_once = _registry(*routes)
    one_by_one = _registry()
    for each in reversed(routes):
        one_by_one.apply(Update(upserts=(each,)))
    assert one_by_one.split(WEB) == at_once.split(WEB)
    assert sorted(one_by_one.conflicts()) == sorted(at_once.conflicts())
    assert len(at_once.conflicts()) == 2


def test_a_route_that_leaves_makes_room_for_the_next_and_its_conflict_is_gone() -> None:
    registry = _registry(_route("old", 1, created="2020"), _route("new", 1, created="2021"))
    assert len(registry.conflicts()) == 1
    registry.apply(Update(deletes=(ObjectKey("TCPRoute", "shop", "old"),)))
    split = registry.split(WEB)
    assert split is not None
    assert split.route == ("shop", "new")
    assert registry.conflicts() == ()


def test_a_route_that_names_a_service_twice_counts_once() -> None:
    twice = replace(_route("canary", 1), parents=(ParentPort("web", None), ParentPort("web", None)))
    registry = _registry(twice, _route("late", 1, created="2023"))
    assert len(registry.conflicts()) == 1
    registry.apply(Update(deletes=(ObjectKey("TCPRoute", "shop", "canary"),)))
    assert registry.conflicts() == ()


def test_a_change_of_a_route_leaves_the_splits_of_other_services_as_they_are() -> None:
    """Each change costs what it touches: with thousands of routes, all of them anew would take seconds."""
    registry = _registry(_route("canary", 1))
    before = registry.split(WEB)
    other = replace(_route("other", 1), parents=(ParentPort("other", None),))
    registry.apply(Update(upserts=(other,)))
    assert registry.split(WEB) is before
