"""Wait until every live agent trusts a root that was published, and say whom for."""

import time
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Final

from ca.authority.acknowledgement import Waiting, waiting_for
from ca.authority.errors import AuthorityError, StoreError
from ca.authority.federation.schedule import usable_at
from ca.authority.federation.settings import BundleEndpointSettings
from ca.authority.rotation import Missing
from ca.authority.store import Store
from node_agent.cli.terminal import duration, printable

_POLL_S: Final = 0.5
_SILENT_S: Final = 120.0  # an agent that watches is heard of every 25 s, and written down every minute


def wait_for_agents(store: Store, *, trust_domain: str, skipped: Collection[str], timeout_s: float) -> None:
    """Return when every live agent has acknowledged the trust of now; prints whom it waits for, when that changes.

    Raises:
        AuthorityError: some have not in time; nothing was changed, and it can be run again.
    """
    deadline = time.monotonic() + timeout_s
    version, told = store.trust.version(), None
    while True:
        at = datetime.now(UTC)
        try:
            waiting = waiting_for(store, trust_domain=trust_domain, version=version, skipped=skipped, at=at)
        except StoreError:  # a database that is away for a moment
            if time.monotonic() >= deadline:
                raise
            time.sleep(_POLL_S)
            continue
        if not waiting.missing:
            return
        names = [each.node for each in waiting.missing]
        if names != told:
            _tell(waiting, at=at)
            told = names
        if time.monotonic() >= deadline:
            listed = ", ".join(printable(name) for name in names)
            raise AuthorityError(
                f"after {timeout_s:.0f} s these agents do not trust the new root yet: {listed}; it stays published, "
                "and nothing else has changed. Bring them back and run this again; those that never come back: "
                "--skip-node NAME"
            )
        time.sleep(_POLL_S)


def wait_for_federation(settings: BundleEndpointSettings | None, *, published_at: datetime, timeout_s: float) -> None:
    """Return when other trust domains have had the time to fetch the new root; at once if our bundle is not served.

    Raises:
        AuthorityError: that takes longer; nothing was changed, and it can be run again.
    """
    if settings is None:
        return
    until = usable_at(published_at, refresh_hint_s=settings.refresh_hint_s)
    remaining_s = (until - datetime.now(UTC)).total_seconds()
    if remaining_s <= 0:
        return
    what = f"other trust domains, which fetch our bundle every {settings.refresh_hint_s} s"
    if remaining_s > timeout_s:
        raise AuthorityError(
            f"the new root is to be published for {what}, until {until:%H:%M:%S} UTC, before it is used; it stays "
            "published, and nothing else has changed: run this again then, or with a longer --timeout-s"
        )
    print(f"waiting until {until:%H:%M:%S} UTC for {what}", flush=True)
    while datetime.now(UTC) < until:
        time.sleep(_POLL_S)


def _tell(waiting: Waiting, *, at: datetime) -> None:
    print(f"waiting for {len(waiting.missing)} of {waiting.live} live agents to trust it:", flush=True)
    for missing in waiting.missing:
        print(f"  {printable(missing.node)}: {_why(missing, at=at)}", flush=True)


def _why(missing: Missing, *, at: datetime) -> str:
    ends = f"its node certificate ends in {duration((missing.certificate_ends_at - at).total_seconds())}"
    if missing.seen_at is None:
        return f"never heard of; {ends}"
    silent_s = (at - missing.seen_at).total_seconds()
    seen = f"last heard of {duration(silent_s)} ago" if silent_s > _SILENT_S else "heard of just now"
    return f"{seen}, with version {missing.version}; {ends}"
