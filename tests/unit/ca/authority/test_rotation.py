from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest

from ca.authority.records import AuthorityKind, AuthorityState
from ca.authority.rotation import (
    Activate,
    Duty,
    Prepare,
    Retire,
    SigningKey,
    longest_delay,
    longest_uncut_lifetime,
    next_step,
    not_acknowledged,
    pause_s,
    prepared_intermediate,
    upcoming,
)

BEGIN: Final = datetime(2030, 1, 1, tzinfo=UTC)
YEAR: Final = timedelta(days=360)
SECOND: Final = timedelta(seconds=1)


def root(key_id: str = "r1", state: AuthorityState = AuthorityState.ACTIVE, *, since: datetime = BEGIN) -> SigningKey:
    return SigningKey(
        key_id=key_id,
        kind=AuthorityKind.ROOT,
        state=state,
        issuer_key_id=key_id,
        not_before=BEGIN,
        not_after=BEGIN + 10 * YEAR,
        since=since,
    )


def intermediate(
    key_id: str,
    state: AuthorityState = AuthorityState.ACTIVE,
    *,
    under: str = "r1",
    begin: datetime = BEGIN,
    since: datetime | None = None,
    last: datetime | None = None,
) -> SigningKey:
    return SigningKey(
        key_id=key_id,
        kind=AuthorityKind.INTERMEDIATE,
        state=state,
        issuer_key_id=under,
        not_before=begin,
        not_after=begin + YEAR,
        since=since or begin,
        last_not_after=last,
    )


def test_what_an_issuer_signs_lives_for_a_sixth_of_its_life_at_most() -> None:
    assert longest_uncut_lifetime(YEAR) == timedelta(days=60)


def test_an_issuer_hands_over_before_its_last_sixth_even_if_that_comes_as_late_as_it_may() -> None:
    key = intermediate("i1")
    assert key.activate_at + longest_delay(YEAR) == key.not_after - longest_uncut_lifetime(YEAR)


def test_the_next_intermediate_is_prepared_at_half_life_and_not_before() -> None:
    keys = [root(), intermediate("i1")]
    half = BEGIN + YEAR / 2
    assert next_step(keys, at=half - SECOND) is None
    assert next_step(keys, at=half) == Prepare()


def test_a_prepared_intermediate_waits_until_a_fifth_is_left() -> None:
    keys = [root(), intermediate("i1"), intermediate("i2", AuthorityState.PREPARED, begin=BEGIN + YEAR / 2)]
    due = BEGIN + YEAR - YEAR / 5
    assert next_step(keys, at=due - SECOND) is None
    assert next_step(keys, at=due) == Activate("i2")


def test_an_intermediate_that_a_wrong_clock_made_is_replaced_when_the_clock_is_right_again() -> None:
    later = BEGIN + 2 * YEAR
    keys = [root(), intermediate("i1", AuthorityState.RETIRED), intermediate("i2", begin=later)]
    assert next_step(keys, at=later) is None
    assert next_step(keys, at=BEGIN + SECOND) == Prepare()
    ready = intermediate("i3", AuthorityState.PREPARED, begin=BEGIN)
    assert next_step([*keys, ready], at=BEGIN + SECOND) == Activate("i3")
    no_better = intermediate("i3", AuthorityState.PREPARED, begin=later)
    assert next_step([*keys, no_better], at=BEGIN + SECOND) == Retire("i3")
    # A clock that is before the root's time can make nothing good; a small step of the clock is waited for.
    assert next_step(keys, at=BEGIN - SECOND) is None
    assert next_step(keys, at=later - timedelta(minutes=4)) is None


def test_a_prepared_intermediate_whose_own_time_has_passed_is_forgotten_and_another_one_made() -> None:
    keys = [root(), intermediate("i1"), intermediate("i2", AuthorityState.PREPARED, begin=BEGIN - YEAR / 2)]
    at = BEGIN + YEAR / 2
    assert next_step(keys, at=at) == Retire("i2")
    keys[2] = replace(keys[2], state=AuthorityState.RETIRED)
    assert next_step(keys, at=at) == Prepare()


def test_an_old_intermediate_retires_when_its_last_certificate_can_not_be_accepted_any_more() -> None:
    last = BEGIN + timedelta(hours=1)
    keys = [root(), intermediate("i2"), intermediate("i1", AuthorityState.RETIRING, last=last)]
    assert next_step(keys, at=last + timedelta(seconds=59)) is None  # the clock skew that verifiers are promised
    assert next_step(keys, at=last + timedelta(seconds=60)) == Retire("i1")


def test_an_old_intermediate_without_certificates_gives_a_replica_time_to_hear_of_it() -> None:
    keys = [root(), intermediate("i2"), intermediate("i1", AuthorityState.RETIRING)]
    assert next_step(keys, at=BEGIN + timedelta(seconds=59)) is None
    assert next_step(keys, at=BEGIN + timedelta(seconds=60)) == Retire("i1")


def test_an_old_root_stays_until_everything_below_it_has_retired() -> None:
    at = BEGIN + timedelta(hours=2)
    old = root("r1", AuthorityState.RETIRING)
    below = intermediate("i1", AuthorityState.RETIRING, last=at + timedelta(hours=1))
    keys = [old, root("r2"), below, intermediate("i2", under="r2")]
    assert next_step(keys, at=at) is None
    keys[2] = replace(below, last_not_after=at - timedelta(hours=1))
    assert next_step(keys, at=at) == Retire("i1")
    keys[2] = replace(below, state=AuthorityState.RETIRED)
    assert next_step(keys, at=at) == Retire("r1")


def test_an_intermediate_under_a_prepared_root_is_never_activated_by_time() -> None:
    keys = [
        root("r1"),
        root("r2", AuthorityState.PREPARED),
        intermediate("i1"),
        intermediate("i2", AuthorityState.PREPARED, under="r2", begin=BEGIN + YEAR / 2),
    ]
    assert prepared_intermediate(keys) is None
    assert prepared_intermediate(keys, root=keys[1]) == keys[3]
    assert next_step(keys, at=BEGIN + YEAR - YEAR / 6) == Prepare()


def test_an_intermediate_is_found_under_a_root_that_is_two_certificates_above_it() -> None:
    upstream = replace(intermediate("u1"), kind=AuthorityKind.UPSTREAM)
    keys = [root(), upstream, intermediate("i1"), intermediate("i2", AuthorityState.PREPARED, under="u1")]
    assert prepared_intermediate(keys) == keys[3]


def test_an_upstream_certificate_goes_with_the_last_intermediate_below_it_and_its_root_after_it() -> None:
    upstream = replace(intermediate("u1"), kind=AuthorityKind.UPSTREAM)
    below = intermediate("i1", AuthorityState.RETIRING, under="u1", last=BEGIN + YEAR / 2)
    keys = [root("r1", AuthorityState.RETIRING), upstream, below, root("r2"), intermediate("i2", under="r2")]
    at = BEGIN + YEAR / 4
    assert next_step(keys, at=at) is None
    keys[2] = replace(below, state=AuthorityState.RETIRED)
    assert next_step(keys, at=at) == Retire("u1")
    keys[1] = replace(upstream, state=AuthorityState.RETIRED)
    assert next_step(keys, at=at) == Retire("r1")


def test_a_chain_that_bites_its_own_tail_belongs_to_no_root() -> None:
    keys = [root(), intermediate("i1", AuthorityState.PREPARED, under="i2"), intermediate("i2", under="i1")]
    assert prepared_intermediate(keys) is None


@pytest.mark.parametrize("lifetime", [timedelta(seconds=120), timedelta(days=90), YEAR])
def test_the_authority_looks_often_enough_to_keep_its_promise(lifetime: timedelta) -> None:
    assert 0 < pause_s(lifetime) <= longest_delay(lifetime).total_seconds() / 10
    assert pause_s(lifetime) <= 60


def test_what_is_due_is_told_in_order_and_says_who_has_to_do_it() -> None:
    keys = [root(), intermediate("i1")]
    found = upcoming(keys, at=BEGIN, root_key_at_hand=False)
    assert [(due.what, due.needs_operator) for due in found] == [
        ("prepare the next intermediate", True),
        ("the intermediate ends", False),
        ("rotate the root", True),
        ("the root ends", False),
    ]
    assert [due.at for due in found] == [BEGIN + YEAR / 2, BEGIN + YEAR, BEGIN + 5 * YEAR, BEGIN + 10 * YEAR]
    assert not any(due.overdue for due in found)
    assert not upcoming(keys, at=BEGIN, root_key_at_hand=True)[0].needs_operator


def test_what_should_have_happened_is_overdue() -> None:
    first = upcoming([root(), intermediate("i1")], at=BEGIN + YEAR / 2 + SECOND, root_key_at_hand=False)[0]
    assert first.overdue


def test_an_old_root_is_due_when_the_last_of_what_is_below_it_is() -> None:
    last = BEGIN + timedelta(hours=1)
    keys = [
        root("r1", AuthorityState.RETIRING),
        root("r2"),
        intermediate("i1", AuthorityState.RETIRING, last=last),
        intermediate("i2", under="r2"),
    ]
    found = {due.what: due.at for due in upcoming(keys, at=BEGIN, root_key_at_hand=True)}
    assert found[Duty.RETIRE_ROOT] == found[Duty.RETIRE_INTERMEDIATE] == last + timedelta(seconds=60)


def test_every_live_node_that_has_not_acknowledged_is_named() -> None:
    ends = BEGIN + timedelta(hours=1)
    missing = not_acknowledged(
        live={"b": ends, "a": ends, "c": ends, "d": ends},
        acknowledged={"a": (7, BEGIN), "b": (6, BEGIN), "gone": (1, BEGIN)},
        version=7,
        newest=8,
        skipped={"d"},
    )
    assert [(each.node, each.version, each.seen_at) for each in missing] == [("b", 6, BEGIN), ("c", 0, None)]


def test_a_node_that_is_ahead_has_acknowledged_too() -> None:
    assert not not_acknowledged(live={"a": BEGIN}, acknowledged={"a": (9, BEGIN)}, version=7, newest=9)


def test_a_version_of_a_time_before_a_restore_acknowledges_nothing() -> None:
    assert not_acknowledged(live={"a": BEGIN}, acknowledged={"a": (50, BEGIN)}, version=7, newest=9)
