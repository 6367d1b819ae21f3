"""The life of a JWT key: published long before it signs, and as long as anything that it signed can be accepted."""

from datetime import UTC, datetime, timedelta
from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from ca.authority.jwt_rotation import (
    LONGEST_TTL,
    PUBLISH_AHEAD,
    REFRESH_HINT,
    SHORTEST_LIFETIME,
    ActivateJwtKey,
    ForgetJwtKey,
    JwtKeyRecord,
    PrepareJwtKey,
    next_step,
)
from ca.authority.records import AuthorityState
from ca.svid import CLOCK_SKEW

BEGIN: Final = datetime(2030, 1, 1, tzinfo=UTC)
WEEK: Final = timedelta(days=7)
SECOND: Final = timedelta(seconds=1)


def key(key_id: str, state: AuthorityState, *, since: datetime = BEGIN) -> JwtKeyRecord:
    return JwtKeyRecord(key_id=key_id, state=state, public_key_der=key_id.encode(), since=since)


ACTIVE: Final = key("a", AuthorityState.ACTIVE)


def test_the_first_key_signs_at_once() -> None:
    assert next_step([], lifetime=WEEK, at=BEGIN) == PrepareJwtKey()
    assert next_step([key("a", AuthorityState.PREPARED)], lifetime=WEEK, at=BEGIN) == ActivateJwtKey("a")
    assert next_step([ACTIVE], lifetime=WEEK, at=BEGIN) is None


def test_the_next_key_is_published_at_half_life_and_signs_at_the_end_of_it() -> None:
    half = BEGIN + WEEK / 2
    assert next_step([ACTIVE], lifetime=WEEK, at=half - SECOND) is None
    assert next_step([ACTIVE], lifetime=WEEK, at=half) == PrepareJwtKey()
    both = [ACTIVE, key("b", AuthorityState.PREPARED, since=half)]
    assert next_step(both, lifetime=WEEK, at=BEGIN + WEEK - SECOND) is None
    assert next_step(both, lifetime=WEEK, at=BEGIN + WEEK) == ActivateJwtKey("b")


def test_a_key_that_was_prepared_late_is_published_for_several_refresh_hints_first() -> None:
    late = BEGIN + 3 * WEEK  # the authority was down
    both = [ACTIVE, key("b", AuthorityState.PREPARED, since=late)]
    assert next_step(both, lifetime=WEEK, at=late + PUBLISH_AHEAD - SECOND) is None
    assert next_step(both, lifetime=WEEK, at=late + PUBLISH_AHEAD) == ActivateJwtKey("b")
    assert PUBLISH_AHEAD >= 3 * REFRESH_HINT  # SPIFFE Federation 6


def test_a_key_is_forgotten_when_its_last_token_can_not_be_accepted_any_more() -> None:
    retiring = key("a", AuthorityState.RETIRING)
    both = [retiring, key("b", AuthorityState.ACTIVE)]
    assert retiring.forget_at > BEGIN + LONGEST_TTL + CLOCK_SKEW
    assert next_step(both, lifetime=WEEK, at=retiring.forget_at - SECOND) is None
    assert next_step(both, lifetime=WEEK, at=retiring.forget_at) == ForgetJwtKey("a")


@given(
    lifetime=st.timedeltas(min_value=SHORTEST_LIFETIME, max_value=timedelta(days=30)),
    pauses=st.lists(st.timedeltas(min_value=SECOND, max_value=timedelta(days=20)), max_size=60),
)
def test_whenever_it_is_looked_at_a_token_is_verified_by_whoever_asks_every_refresh_hint(
    lifetime: timedelta, pauses: list[timedelta]
) -> None:
    """A model of the store, and of a verifier that has the bundle of one refresh hint ago."""
    keys: dict[str, JwtKeyRecord] = {}
    published: dict[str, datetime] = {}
    at = BEGIN
    for pause in [timedelta(0), *pauses]:
        at += pause
        while (step := next_step(keys.values(), lifetime=lifetime, at=at)) is not None:
            match step:
                case PrepareJwtKey():
                    name = f"k{len(published)}"
                    keys[name] = key(name, AuthorityState.PREPARED, since=at)
                    published[name] = at
                case ActivateJwtKey(name):
                    for other in list(keys.values()):
                        if other.state is AuthorityState.ACTIVE:
                            assert at - published[name] >= PUBLISH_AHEAD
                            keys[other.key_id] = key(other.key_id, AuthorityState.RETIRING, since=at)
                    keys[name] = key(name, AuthorityState.ACTIVE, since=at)
                case ForgetJwtKey(name):
                    assert keys[name].state is AuthorityState.RETIRING
                    assert at >= keys[name].since + LONGEST_TTL + CLOCK_SKEW
                    del keys[name]
        states = [each.state for each in keys.values()]
        assert states.count(AuthorityState.ACTIVE) == 1
        assert states.count(AuthorityState.PREPARED) <= 1
