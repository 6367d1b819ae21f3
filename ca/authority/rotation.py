"""When one signing key makes way for the next, so that nobody notices.

Sans-I/O: no clock, no keys, no database.  Callers pass ``at``, an aware datetime in UTC.

    |------------------- lifetime of a signing certificate -------------------|
    made                   half: prepare the next       1/5 left: activate it |
                                                           |<----- 1/6 ------>|
                                                           the longest life of what it signs

    (made) --> prepared --activate--> active --the next is activated--> retiring --last certificate gone--> retired

*prepared* roots are published: every agent trusts them before anything is
signed under them.  *retiring* keys sign no more, but what they signed is still
trusted.  The same thresholds hold for roots, whose certificates are the
intermediates.  After SPIRE's ``slot.go``, but that a threshold here is a
fraction of the lifetime only, so that what it guarantees is one division.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from ca.authority.records import AuthorityKind, AuthorityState

_PREPARE_AT: Final = 2  # when 1/2 of the lifetime is left
_ACTIVATE_AT: Final = 5  # when 1/5 is left
_UNCUT: Final = 6  # what it signs lives for 1/6 at most
_CLOCK_SKEW: Final = timedelta(seconds=60)  # how long after its end a verifier may still accept a certificate
# A replica that has not heard yet of the new key may sign with the old one; it asks the database every second.
_RELOAD_GRACE: Final = timedelta(seconds=60)
_LONGEST_PAUSE_S: Final = 60.0
_WRONG_CLOCK: Final = timedelta(minutes=5)  # what is less is over before anybody has to renew
_FINISH_WITHIN: Final = timedelta(hours=1)  # a root that is published and not activated for longer was forgotten


def longest_uncut_lifetime(lifetime: timedelta) -> timedelta:
    """The longest life of a certificate that no rotation of its issuer cuts short.

    An issuer that lives for ``lifetime`` signs until 1/5 of it is left, so that
    whatever it signs can live for 1/5; a rotation that comes late, because the
    authority was down or the operator away, has the difference to 1/6 to do it.
    """
    return lifetime / _UNCUT


def longest_delay(lifetime: timedelta) -> timedelta:
    """How late a rotation may come without breaking the promise of ``longest_uncut_lifetime``."""
    return lifetime / _ACTIVATE_AT - lifetime / _UNCUT


def pause_s(lifetime: timedelta) -> float:
    """How long to wait before looking again whether something is due: a small part of ``longest_delay``."""
    return min(_LONGEST_PAUSE_S, longest_delay(lifetime).total_seconds() / 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """What rotation needs to know of a root or an intermediate.

    ``since`` is when it came into its state; ``last_not_after`` when the last
    certificate that it signed ends, None if it signed none.
    """

    key_id: str
    kind: AuthorityKind
    state: AuthorityState
    issuer_key_id: str
    not_before: datetime
    not_after: datetime
    since: datetime
    last_not_after: datetime | None = None

    @property
    def lifetime(self) -> timedelta:
        """How long the certificate is valid."""
        return self.not_after - self.not_before

    @property
    def prepare_at(self) -> datetime:
        """When the next one is to be made."""
        return self.not_after - self.lifetime / _PREPARE_AT

    @property
    def activate_at(self) -> datetime:
        """When the next one is to take over."""
        return self.not_after - self.lifetime / _ACTIVATE_AT

    @property
    def retire_at(self) -> datetime:
        """When nothing that it signed can be accepted any more; for a key that signs no more."""
        last = self.since + _RELOAD_GRACE
        return last if self.last_not_after is None else max(last, self.last_not_after + _CLOCK_SKEW)

    def should_prepare(self, at: datetime) -> bool:
        """Whether the next one should be there by now."""
        return at >= self.prepare_at

    def should_activate(self, at: datetime) -> bool:
        """Whether the next one should sign by now."""
        return at >= self.activate_at

    def should_retire(self, at: datetime) -> bool:
        """Whether it can be forgotten: it signs no more, and the last certificate that it signed has ended."""
        return self.state is AuthorityState.RETIRING and at >= self.retire_at


@dataclass(frozen=True, slots=True)
class Prepare:
    """Make the next intermediate, under the active root."""


@dataclass(frozen=True, slots=True)
class Activate:
    """Let the prepared intermediate sign."""

    key_id: str


@dataclass(frozen=True, slots=True)
class Retire:
    """Forget a key; a root leaves the trust bundle."""

    key_id: str


Step = Prepare | Activate | Retire


def next_step(keys: Iterable[SigningKey], *, at: datetime) -> Step | None:
    """What is due now and needs no operator; None if nothing is.  Do it and ask again."""
    keys = list(keys)
    for key in keys:
        # Somebody else's certificate is there for the intermediates below it, and goes with the last of them.
        over = key.kind is AuthorityKind.UPSTREAM and key.state is not AuthorityState.RETIRED
        if (over or key.should_retire(at)) and not _has_descendants(key, keys):
            return Retire(key.key_id)
    active, prepared = active_intermediate(keys), prepared_intermediate(keys)
    if _made_by_a_wrong_clock(active, active_root(keys), at=at):
        if prepared is None:
            return Prepare()
        return Activate(prepared.key_id) if prepared.not_before <= at else Retire(prepared.key_id)
    if prepared is not None and prepared.should_activate(at):
        return Retire(prepared.key_id)  # the authority was down for so long that its time has passed
    if active is not None and prepared is None and active.should_prepare(at):
        return Prepare()
    if active is not None and prepared is not None and active.should_activate(at):
        return Activate(prepared.key_id)
    return None


def _made_by_a_wrong_clock(active: SigningKey | None, root: SigningKey | None, *, at: datetime) -> bool:
    """Whether the intermediate is valid in the future only: then the clock was ahead when it was made.

    If it is behind now, in the life of the root still, one intermediate too many is made, which harms nobody.
    """
    if active is None or root is None:
        return False
    return root.not_before <= at < active.not_before - _WRONG_CLOCK


def active_root(keys: Iterable[SigningKey]) -> SigningKey | None:
    """The root that intermediates are made under."""
    return _first(keys, AuthorityKind.ROOT, AuthorityState.ACTIVE)


def prepared_root(keys: Iterable[SigningKey]) -> SigningKey | None:
    """The root that is published and waits for the agents."""
    return _first(keys, AuthorityKind.ROOT, AuthorityState.PREPARED)


def active_intermediate(keys: Iterable[SigningKey]) -> SigningKey | None:
    """The intermediate that signs."""
    return _first(keys, AuthorityKind.INTERMEDIATE, AuthorityState.ACTIVE)


def prepared_intermediate(keys: Iterable[SigningKey], *, root: SigningKey | None = None) -> SigningKey | None:
    """The next intermediate under ``root``, or under the active one."""
    keys = list(keys)
    root = root or active_root(keys)
    candidates = (key for key in keys if key.kind is AuthorityKind.INTERMEDIATE)
    prepared = (key for key in candidates if key.state is AuthorityState.PREPARED)
    return None if root is None else next((key for key in prepared if root_of(key, keys) == root), None)


def root_of(key: SigningKey, keys: Iterable[SigningKey]) -> SigningKey | None:
    """The root at the top of a key's chain."""
    by_id = {each.key_id: each for each in keys}
    seen = set()
    while key.kind is not AuthorityKind.ROOT:
        if key.key_id in seen or key.issuer_key_id not in by_id:
            return None
        seen.add(key.key_id)
        key = by_id[key.issuer_key_id]
    return key


def _first(keys: Iterable[SigningKey], kind: AuthorityKind, state: AuthorityState) -> SigningKey | None:
    return next((key for key in keys if key.kind is kind and key.state is state), None)


def _has_descendants(key: SigningKey, keys: Sequence[SigningKey]) -> bool:
    """Whether something below it is not forgotten yet."""
    return any(
        each.issuer_key_id == key.key_id and each.key_id != key.key_id and each.state is not AuthorityState.RETIRED
        for each in keys
    )


class Duty(StrEnum):
    """What can be due; the text is for people."""

    INSTALL = "have the first intermediate signed, and install it"
    PREPARE = "prepare the next intermediate"
    ACTIVATE = "activate the prepared intermediate"
    INTERMEDIATE_ENDS = "the intermediate ends"
    ROTATE_ROOT = "rotate the root"
    FINISH_ROOT = "go on with the rotation of the root"
    ROOT_ENDS = "the root ends"
    RETIRE_INTERMEDIATE = "retire the old intermediate"
    RETIRE_ROOT = "retire the old root"


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """Something that is to happen; ``overdue`` says that it should have happened before now."""

    what: Duty
    at: datetime
    key_id: str
    needs_operator: bool
    overdue: bool


def upcoming(keys: Iterable[SigningKey], *, at: datetime, root_key_at_hand: bool) -> list[Due]:
    """What is due next, the first first; what needs the root key needs the operator, unless it is at hand."""
    keys = list(keys)
    found: list[tuple[Duty, datetime, SigningKey, bool]] = []
    root, active, prepared = active_root(keys), active_intermediate(keys), prepared_intermediate(keys)
    if active is not None:
        if prepared is None:
            found.append((Duty.PREPARE, active.prepare_at, active, not root_key_at_hand))
        else:
            found.append((Duty.ACTIVATE, active.activate_at, prepared, False))
        found.append((Duty.INTERMEDIATE_ENDS, active.not_after, active, False))
    elif root is not None:
        found.append((Duty.INSTALL, root.since, root, True))
    if root is not None:
        next_root = prepared_root(keys)
        if next_root is None:
            found.append((Duty.ROTATE_ROOT, root.prepare_at, root, True))
        else:
            found.append((Duty.FINISH_ROOT, next_root.since + _FINISH_WITHIN, next_root, True))
        found.append((Duty.ROOT_ENDS, root.not_after, root, False))
    for key in keys:
        if key.state is AuthorityState.RETIRING:
            duty = Duty.RETIRE_ROOT if key.kind is AuthorityKind.ROOT else Duty.RETIRE_INTERMEDIATE
            found.append((duty, _retire_at(key, keys), key, False))
    return [
        Due(what=what, at=when, key_id=key.key_id, needs_operator=operator, overdue=when < at)
        for what, when, key, operator in sorted(found, key=lambda each: each[1])
    ]


def _retire_at(key: SigningKey, keys: Sequence[SigningKey]) -> datetime:
    below = [
        _retire_at(each, keys)
        for each in keys
        if each.issuer_key_id == key.key_id and each.key_id != key.key_id and each.state is AuthorityState.RETIRING
    ]
    return max([key.retire_at, *below])


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """A live node that does not trust the new root yet; ``version`` is what it has, 0 if it never said."""

    node: str
    version: int
    seen_at: datetime | None
    certificate_ends_at: datetime


def not_acknowledged(
    *,
    live: Mapping[str, datetime],
    acknowledged: Mapping[str, tuple[int, datetime]],
    version: int,
    newest: int,
    skipped: Collection[str] = (),
) -> list[Missing]:
    """Whom the activation of a root waits for, by name.

    Args:
        live: nodes that hold a node certificate which has not expired, and when it does.
        acknowledged: nodes that have said which trust version they have in force, and when.
        version: the trust version that publishes the new root, or a later one.
        newest: the trust version now; who says more has it from a time before the authority was restored from a backup.
        skipped: nodes that the operator knows never to come back.
    """
    missing = []
    for node, ends_at in sorted(live.items()):
        has, seen_at = acknowledged.get(node, (0, None))
        if not version <= has <= newest and node not in skipped:
            missing.append(Missing(node=node, version=has, seen_at=seen_at, certificate_ends_at=ends_at))
    return missing
