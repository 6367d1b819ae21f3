"""What ``ringfence ca status`` knows: keys, ages, agents, revocations, federated domains, and what is due next.

Plain data here, exactly what ``--json`` prints; ``node_agent/cli/ca/status.py``
shows it to people.  Times are UTC, ISO 8601.
"""

from datetime import datetime, timedelta
from typing import Any

from ca.authority import profile, rotation
from ca.authority.config import AuthorityConfig
from ca.authority.records import AuthorityKind, AuthorityRecord, AuthorityState
from ca.authority.rotation import Due, Duty
from ca.authority.store import Store
from ca.authority.store.authorities import last_not_after
from ca.authority.store.federation import Federation
from ca.authority.store.jwt_keys import JwtKeys
from ca.authority.store.live_nodes import live_nodes
from ca.authority.succession import signing_keys


def describe(config: AuthorityConfig, store: Store, *, at: datetime) -> dict[str, Any]:
    """Look at everything.

    Raises:
        StoreError: the database can not be asked.
    """
    duties = due(config, store, at=at)
    return {
        "trust_domain": config.trust_domain,
        "state_dir": str(config.state_dir),
        "database": str(config.database),
        "svid_ttl_s": config.svid_ttl_s,
        "at": at.isoformat(timespec="seconds"),
        "authorities": [_authority(record, store, at) for record in store.authorities()],
        "trust_version": store.trust.version(),
        "agents": _agents(config, store, at),
        "certificates_issued": store.certificate_count(),
        "nodes": [
            {"node": node.node, "certificates": node.certificates, "last_issued_at": node.last_issued_at.isoformat()}
            for node in store.nodes()
        ],
        "tokens_pending": [
            {"node": token.node, "expires_at": token.expires_at.isoformat()} for token in store.pending_tokens(at=at)
        ],
        "revocations": [
            {
                "kind": str(each.kind),
                "value": each.value,
                "at": each.at.isoformat(),
                "until": _time(each.until),
                "why": each.why,
                "certificates": each.certificates,
            }
            for each in store.revocations.read(at=at)
        ],
        "federation": [
            {
                "trust_domain": domain.trust_domain,
                "endpoint": str(domain.relation.url),
                "sequence": None if domain.bundle is None else domain.bundle.sequence,
                "roots": 0 if domain.bundle is None else len(domain.bundle.x509_der),
                "polled_at": _time(domain.polled_at),
                "next_poll_at": domain.next_poll_at.isoformat(),
                "failures": domain.failures,
                "problem": domain.problem or None,
            }
            for domain in Federation(store.database).domains()
        ],
        "jwt_keys": [
            {"key_id": key.key_id, "state": str(key.state), "since": key.since.isoformat()}
            for key in JwtKeys(store.database).read()
        ],
        "due": duties,
        "due_next": next(iter(duties), None),
    }


def due(config: AuthorityConfig, store: Store, *, at: datetime) -> list[dict[str, Any]]:
    """What is to happen, the first first, with the commands for what needs an operator."""
    keys, records = signing_keys(store.database), store.authorities()
    active = rotation.active_root(keys)
    root = next((record for record in records if active is not None and record.key_id == active.key_id), None)
    at_hand = root is not None and store.keys.has(root.key_id)
    foreign = root is not None and not is_ours(root, trust_domain=config.trust_domain)
    return [
        {
            "what": str(each.what),
            "key_id": each.key_id,
            "at": each.at.isoformat(),
            "in_s": int((each.at - at).total_seconds()),
            "overdue": each.overdue,
            "needs_operator": each.needs_operator,
            "commands": _commands(each, foreign=foreign),
        }
        for each in rotation.upcoming(keys, at=at, root_key_at_hand=at_hand)
    ]


def is_ours(root: AuthorityRecord, *, trust_domain: str) -> bool:
    """Whether a root was made here; it is somebody else's if not."""
    try:
        profile.require_root(root.certificate, trust_domain=trust_domain)
    except profile.ProfileError:
        return False
    return True


def _commands(each: Due, *, foreign: bool) -> list[str]:
    if not each.needs_operator:
        return []
    if each.what is Duty.INSTALL:
        return ["ringfence ca install-intermediate FILE"]
    if each.what is Duty.PREPARE and not foreign:
        return ["ringfence ca rotate intermediate --root-key FILE"]
    if each.what is Duty.PREPARE:
        return ["ringfence ca rotate intermediate --csr FILE", "ringfence ca install-intermediate FILE"]
    if each.what is Duty.ROTATE_ROOT and foreign:
        publish = "ringfence ca rotate root --root-cert FILE --csr FILE"
        return [publish, "ringfence ca install-intermediate FILE", "ringfence ca rotate root"]
    return ["ringfence ca rotate root"]


def _authority(record: AuthorityRecord, store: Store, at: datetime) -> dict[str, Any]:
    certificate = record.certificate
    last = None if record.kind is not AuthorityKind.INTERMEDIATE else last_not_after(store.database, record.key_id)
    gone = record.kind is AuthorityKind.UPSTREAM or record.state is AuthorityState.RETIRED
    return {
        "kind": str(record.kind),
        "state": str(record.state),
        "key_id": record.key_id,
        "issuer_key_id": record.issuer_key_id,
        "subject": certificate.subject.rfc4514_string(),
        "serial": f"{certificate.serial_number:040x}",
        "age_s": int((at - record.created_at).total_seconds()),
        "since": record.since.isoformat(),
        "not_before": certificate.not_valid_before_utc.isoformat(),
        "not_after": certificate.not_valid_after_utc.isoformat(),
        "last_certificate_ends_at": _time(last),
        "key_here": not gone and store.keys.has(record.key_id),
    }


def _agents(config: AuthorityConfig, store: Store, at: datetime) -> list[dict[str, Any]]:
    """Every node that is alive or was heard of; it trusts what is to be trusted if it has the version of now."""
    live = live_nodes(store.database, trust_domain=config.trust_domain, at=at)
    heard = {agent.node: agent for agent in store.trust.agents()}
    version, shut_out = store.trust.version(), store.revocations.shut_out()
    found = []
    for node in sorted(live.keys() | heard.keys()):
        agent = heard.get(node)
        found.append(
            {
                "node": node,
                "live": node in live,
                "shut_out": node in shut_out and node not in live,
                "certificate_ends_at": _time(live.get(node)),
                "version": 0 if agent is None else agent.version,
                "acknowledged": agent is not None and agent.version == version,
                "seen_at": None if agent is None else agent.seen_at.isoformat(),
                "seen_s": None if agent is None else int((at - agent.seen_at) / timedelta(seconds=1)),
                "address": None if agent is None else agent.address,
            }
        )
    return found


def _time(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()
