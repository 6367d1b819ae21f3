"""Whom the rotation of a root waits for: the live agents that do not trust the new root yet."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from ca.authority.errors import AuthorityError
from ca.authority.rotation import Missing, not_acknowledged
from ca.authority.store import Store
from ca.authority.store.live_nodes import live_nodes


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """How many agents are asked, and which of them have not answered."""

    live: int
    missing: list[Missing]


def waiting_for(store: Store, *, trust_domain: str, version: int, skipped: Collection[str], at: datetime) -> Waiting:
    """Look who has not acknowledged ``version`` of the trust.

    A node that is revoked is not alive; one that was let in again is.

    Raises:
        AuthorityError: a node to skip is not alive, so that its name may be misspelt; or the store can not be asked.
    """
    live = live_nodes(store.database, trust_domain=trust_domain, at=at)
    agents = {agent.node: (agent.version, agent.seen_at) for agent in store.trust.agents()}
    unknown = sorted(set(skipped) - live.keys() - agents.keys())
    if unknown:
        known = ", ".join(sorted(live)) or "none"
        raise AuthorityError(f"--skip-node {unknown[0]}: no such node is alive; there are {known}")
    newest = store.trust.version()
    missing = not_acknowledged(live=live, acknowledged=agents, version=version, newest=newest, skipped=skipped)
    return Waiting(live=len(live), missing=missing)
