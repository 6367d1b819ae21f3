"""The share that each backend of a TCPRoute gets."""

from random import Random

import pytest

from node_agent.model import ObjectName
from node_agent.registry.tcp_routes import Split


@pytest.mark.parametrize("weights", [(90, 10), (1, 1), (50, 30, 20), (999, 1)])
def test_ten_thousand_connections_are_within_two_points_of_the_weights(weights: tuple[int, ...]) -> None:
    upto = tuple(sum(weights[: number + 1]) for number in range(len(weights)))
    backends = tuple((ObjectName("shop", f"v{number}"), 80) for number in range(len(weights)))
    split = Split(route=ObjectName("shop", "r"), backends=backends, upto=upto)
    draw = Random(7).random
    picks = [split.backend(draw()) for _ in range(10_000)]
    for backend, weight in zip(backends, weights, strict=True):
        assert abs(picks.count(backend) / 10_000 - weight / sum(weights)) <= 0.02
