"""What ``ringfence ca status`` shows: keys and their ages, nodes, pending tokens, what is due next."""

from datetime import datetime, timedelta
from typing import Any

from ca.authority.config import AuthorityConfig
from ca.authority.records import AuthorityRecord, AuthorityState
from ca.authority.store import Store


def describe(config: AuthorityConfig, store: Store, *, at: datetime) -> dict[str, Any]:
    """Everything as plain data: exactly what ``--json`` prints.  Times are UTC, ISO 8601."""
    authorities = store.authorities()
    current = [record for record in authorities if record.state is not AuthorityState.RETIRED]
    first_to_end = min(current, key=lambda record: record.certificate.not_valid_after_utc, default=None)
    return {
        "trust_domain": config.trust_domain,
        "state_dir": str(config.state_dir),
        "svid_ttl_s": config.svid_ttl_s,
        "authorities": [_authority(record, at) for record in authorities],
        "certificates_issued": store.certificate_count(),
        "nodes": [
            {
                "node": node.node,
                "certificates": node.certificates,
                "last_issued_at": node.last_issued_at.isoformat(),
            }
            for node in store.nodes()
        ],
        "tokens_pending": [
            {"node": token.node, "expires_at": token.expires_at.isoformat()} for token in store.pending_tokens(at=at)
        ],
        "due_next": None
        if first_to_end is None
        else {
            "what": f"{first_to_end.kind} {first_to_end.key_id} ends",
            "at": first_to_end.certificate.not_valid_after_utc.isoformat(),
        },
    }


def render(found: dict[str, Any]) -> str:
    """The same for people."""
    lines = [f"authority of {found['trust_domain']}, SVIDs live {found['svid_ttl_s']} s", ""]
    lines += _table(
        ["KIND", "STATE", "KEY", "AGE", "ENDS"],
        [
            [each["kind"], each["state"], each["key_id"][:16], _days(each["age_s"]), each["not_after"]]
            for each in found["authorities"]
        ],
    )
    lines += ["", f"{found['certificates_issued']} certificates issued"]
    if found["nodes"]:
        lines += [
            "",
            *_table(
                ["NODE", "CERTIFICATES", "LAST"],
                [[each["node"], str(each["certificates"]), each["last_issued_at"]] for each in found["nodes"]],
            ),
        ]
    if found["tokens_pending"]:
        lines += [
            "",
            *_table(["TOKEN FOR", "EXPIRES"], [[each["node"], each["expires_at"]] for each in found["tokens_pending"]]),
        ]
    if found["due_next"]:
        lines += ["", f"due next: {found['due_next']['what']} at {found['due_next']['at']}"]
    return "\n".join(lines)


def _authority(record: AuthorityRecord, at: datetime) -> dict[str, Any]:
    certificate = record.certificate
    return {
        "kind": str(record.kind),
        "state": str(record.state),
        "key_id": record.key_id,
        "serial": f"{certificate.serial_number:040x}",
        "age_s": int((at - record.created_at).total_seconds()),
        "not_before": certificate.not_valid_before_utc.isoformat(),
        "not_after": certificate.not_valid_after_utc.isoformat(),
    }


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    ]


def _days(seconds: int) -> str:
    age = timedelta(seconds=seconds)
    return f"{age.days} d" if age.days else f"{seconds // 3600} h {seconds % 3600 // 60} min"
