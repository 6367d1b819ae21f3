"""What is wrong, or strange, about a policy: one line, its place, and what to do."""

from dataclasses import dataclass
from enum import StrEnum

from ca.manifests.documents import Path
from node_agent.model import ObjectName


class Severity(StrEnum):
    """``ERROR``: it does not do what it says.  ``WARNING``: probably not what is meant.  ``NOTE``: good to know."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Code(StrEnum):
    """Which kind of finding it is; docs/policy.md lists them."""

    REFUSED = "refused"
    NEVER_ALLOWS = "never-allows"
    DENIES_MORE = "denies-more"
    CUSTOM = "custom"
    NEVER_MATCHES = "never-matches"
    FITS_NOBODY = "fits-nobody"
    TRUST_DOMAIN = "trust-domain"
    UNKNOWN_NAMESPACE = "unknown-namespace"
    UNKNOWN_PRINCIPAL = "unknown-principal"
    SELECTS_NOTHING = "selects-nothing"
    SHADOWED = "shadowed"
    DENIED_ANYWAY = "denied-anyway"
    ALLOWS_PLAINTEXT = "allows-plaintext"
    ALLOWS_NOTHING = "allows-nothing"
    DRY_RUN = "dry-run"
    WHOLE_MESH = "whole-mesh"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """``path`` is inside of the object, empty for all of it."""

    severity: Severity
    code: Code
    policy: ObjectName
    path: Path = ()
    message: str


def criterion_path(rule: int, part: str, number: int, field: str) -> Path:
    """Where a criterion of a rule is written; ``part`` is from, to or when."""
    place: Path = ("spec", "rules", rule, part, number)
    if part == "when":
        return (*place, "notValues" if field.endswith(" notValues") else "values")
    return (*place, "source" if part == "from" else "operation", field)
