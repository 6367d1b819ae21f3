"""Certificates near their end: who is told, and how often."""

from datetime import UTC, datetime, timedelta
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.identity.expiry import ExpiryWatch, Held, described, near_their_end

START: Final = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
HOUR_S: Final = 3600.0


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def held(life_s: float, *, error: str = "the CA is down", name: str = "spiffe://a/b") -> Held:
    return Held(name=name, issued_at=START, not_after=after(life_s), error=error)


@pytest.mark.parametrize(
    ("life_s", "told_left_s"),
    [(24 * HOUR_S, HOUR_S), (7 * 24 * HOUR_S, HOUR_S), (HOUR_S, 0.45 * HOUR_S), (10.0, 4.5)],
)
def test_it_is_told_an_hour_before_the_end_or_when_less_than_half_of_a_short_life_is_left(
    life_s: float, told_left_s: float
) -> None:
    assert not near_their_end([held(life_s)], at=after(life_s - told_left_s - 1))
    assert near_their_end([held(life_s)], at=after(life_s - told_left_s + 0.1))
    assert near_their_end([held(life_s)], at=after(life_s))


@given(life_s=st.floats(min_value=1, max_value=1e6), passed=st.floats(min_value=0, max_value=2))
def test_a_certificate_whose_renewal_has_not_failed_is_nobodys_worry(life_s: float, passed: float) -> None:
    assert not near_their_end([held(life_s, error="")], at=after(life_s * passed))


def test_the_line_names_the_first_to_end_how_many_and_why() -> None:
    near = near_their_end(
        [held(HOUR_S, name="later"), held(HOUR_S - 60, name="first"), held(9 * HOUR_S, name="fine")],
        at=after(HOUR_S - 600),
    )
    text = described(near, at=after(HOUR_S - 600))
    assert text == (
        "the certificate of first and 1 more could not be renewed and ends in 9 min, at 2026-11-22T12:59:00Z; "
        "then its connections are refused: the CA is down"
    )


def test_the_log_is_told_at_once_then_each_time_when_half_of_the_rest_is_gone() -> None:
    watch = ExpiryWatch()
    lines = [second for second in range(3600) if watch.to_log([held(HOUR_S)], at=after(second))]
    assert lines[:3] == [1980, 2790, 3195]
    assert len(lines) < 14


def test_after_a_renewal_the_next_time_is_told_at_once_again() -> None:
    watch = ExpiryWatch()
    assert watch.to_log([held(HOUR_S)], at=after(3000))
    assert not watch.to_log([held(HOUR_S)], at=after(3001))
    assert not watch.to_log([held(2 * HOUR_S, error="")], at=after(3002))
    assert watch.to_log([held(HOUR_S)], at=after(3003))
