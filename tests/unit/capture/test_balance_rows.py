"""What the kernel draws from: rows with exact shares, in a table whose ranges are taken and given back."""

import random

import pytest

from node_agent.capture.alias import alias_rows
from node_agent.capture.row_space import RowSpace

_DRAWS = 1 << 32


def _shares_of(rows: list[tuple[int, int]]) -> list[float]:
    """What each index gets of all draws, as the kernel draws: any row, then its own or the other's."""
    found = [0] * len(rows)
    for index, (own, other) in enumerate(rows):
        found[index] += own
        found[other] += _DRAWS - own
    return [each / (_DRAWS * len(rows)) for each in found]


@pytest.mark.parametrize(
    "weights",
    [
        [1.0],
        [1.0, 1.0, 1.0],
        [1.0, 3.0, 6.0],
        [1e-9, 1.0],
        [1000.0, 1.0, 1.0, 1.0],
        [float(number) for number in range(1, 501)],
        [0.7 / 2, 0.7 / 2, 0.3 / 3, 0.3 / 3, 0.3 / 3],
    ],
)
def test_every_endpoint_gets_its_share_of_the_draws(weights: list[float]) -> None:
    rows = alias_rows(weights)
    assert all(0 < own <= _DRAWS and 0 <= other < len(weights) for own, other in rows)
    for got, weight in zip(_shares_of(list(rows)), weights, strict=True):
        assert got == pytest.approx(weight / sum(weights), abs=1e-8)


def test_shares_are_exact_for_any_weights() -> None:
    rng = random.Random(7)
    for _ in range(200):
        weights = [
            rng.choice((1.0, rng.random() + 1e-6, rng.random() * 1000 + 1e-3)) for _ in range(rng.randint(1, 60))
        ]
        for got, weight in zip(_shares_of(list(alias_rows(weights))), weights, strict=True):
            assert got == pytest.approx(weight / sum(weights), abs=1e-8)


def test_what_is_given_back_rests_before_it_is_taken_again() -> None:
    space = RowSpace(10, rest_s=1.0)
    assert space.take(6, 0.0) == 0
    assert space.take(4, 0.0) == 6
    assert space.take(1, 0.0) is None
    space.give_back(0, 6, 5.0)
    assert space.take(1, 5.9) is None
    assert space.take(7, 6.0) is None
    assert space.take(6, 6.0) == 0


def test_rows_of_an_agent_before_are_not_taken() -> None:
    space = RowSpace(10, rest_s=0.0)
    assert space.reserve(3, 4)
    assert not space.reserve(6, 2)
    assert not space.reserve(9, 2)
    assert space.take(4, 0.0) is None
    assert space.take(3, 0.0) == 0
    assert space.take(3, 0.0) == 7
    space.give_back(3, 4, 0.0)
    assert space.take(4, 0.0) == 3


def test_no_row_is_ever_taken_twice_or_lost() -> None:
    rng = random.Random(11)
    size = 64
    space = RowSpace(size, rest_s=2.0)
    held: dict[int, int] = {}
    for now in range(3000):
        if held and rng.random() < 0.5:
            first = rng.choice(list(held))
            space.give_back(first, held.pop(first), float(now))
        elif (taken := space.take(count := rng.randint(1, 12), float(now))) is not None:
            rows = set(range(taken, taken + count))
            assert max(rows) < size
            assert not any(rows & set(range(first, first + length)) for first, length in held.items())
            held[taken] = count
    for first, count in held.items():
        space.give_back(first, count, 3000.0)
    assert space.take(size, 3010.0) == 0
