"""An authority that looks at its keys now and then, for years, against what it promises."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st

from ca.authority.records import AuthorityKind, AuthorityState
from ca.authority.rotation import (
    Activate,
    Prepare,
    Retire,
    SigningKey,
    active_intermediate,
    longest_delay,
    longest_uncut_lifetime,
    next_step,
)

BEGIN: Final = datetime(2030, 1, 1, tzinfo=UTC)
ROOT: Final = SigningKey(
    key_id="root",
    kind=AuthorityKind.ROOT,
    state=AuthorityState.ACTIVE,
    issuer_key_id="root",
    not_before=BEGIN,
    not_after=BEGIN + timedelta(days=100_000),
    since=BEGIN,
)


class World:
    """Does what ``next_step`` says, and remembers every certificate that was issued."""

    def __init__(self, lifetime: timedelta) -> None:
        self.lifetime = lifetime
        self.made = 0
        self.keys = {"root": ROOT}
        self.keys["i0"] = self._make(AuthorityState.ACTIVE, BEGIN)
        self.issued: list[tuple[str, datetime]] = []

    def _make(self, state: AuthorityState, at: datetime) -> SigningKey:
        key = SigningKey(
            key_id=f"i{self.made}",
            kind=AuthorityKind.INTERMEDIATE,
            state=state,
            issuer_key_id="root",
            not_before=at,
            not_after=at + self.lifetime,
            since=at,
        )
        self.made += 1
        return key

    def look(self, at: datetime) -> None:
        while (step := next_step(self.keys.values(), at=at)) is not None:
            match step:
                case Prepare():
                    key = self._make(AuthorityState.PREPARED, at)
                    self.keys[key.key_id] = key
                case Activate(key_id):
                    old = self.active
                    self.keys[old.key_id] = replace(old, state=AuthorityState.RETIRING, since=at)
                    self.keys[key_id] = replace(self.keys[key_id], state=AuthorityState.ACTIVE, since=at)
                case Retire(key_id):
                    self.keys[key_id] = replace(self.keys[key_id], state=AuthorityState.RETIRED, since=at)

    @property
    def active(self) -> SigningKey:
        found = active_intermediate(self.keys.values())
        assert found is not None
        return found

    def issue(self, at: datetime, ttl: timedelta) -> None:
        issuer, not_after = self.active, at + ttl
        assert issuer.not_before <= at
        assert not_after <= issuer.not_after, "a rotation cut a certificate short"
        self.issued.append((issuer.key_id, not_after))
        last = max(not_after, issuer.last_not_after or not_after)
        self.keys[issuer.key_id] = replace(issuer, last_not_after=last)


@settings(deadline=None)
@given(data=st.data(), days=st.integers(1, 400))
def test_no_certificate_is_cut_short_and_none_outlives_the_trust_in_its_issuer(data: st.DataObject, days: int) -> None:
    world = World(lifetime=timedelta(days=days))
    longest = longest_uncut_lifetime(world.lifetime)
    at = BEGIN
    for _ in range(data.draw(st.integers(10, 150))):
        world.look(at)
        for key_id, not_after in world.issued:
            if not_after >= at:
                assert world.keys[key_id].state is not AuthorityState.RETIRED
        world.issue(at, longest * data.draw(st.floats(0.01, 1)))
        # Between two looks the authority may be away for as long as a rotation may come late.
        pause = longest_delay(world.lifetime) * data.draw(st.floats(0.01, 1))
        world.issue(at + pause * data.draw(st.floats(0, 0.999)), longest)
        at += pause
    states = [key.state for key in world.keys.values() if key.kind is AuthorityKind.INTERMEDIATE]
    assert states.count(AuthorityState.ACTIVE) == 1
    assert states.count(AuthorityState.PREPARED) <= 1
