"""What the agent as a whole tells Prometheus: certificates, trust, the CA, manifests."""

from collections.abc import Iterable
from datetime import UTC, datetime

import trio

from node_agent.identity import Identities
from node_agent.identity.trust import TrustStore
from node_agent.identity.trust_watch import TrustWatch
from node_agent.report import Report
from node_agent.telemetry.metrics import Metrics


def register_gauges(
    metrics: Metrics, *, report: Report, identities: Identities, watch: TrustWatch, trust: TrustStore
) -> None:
    """Register them; each is read when somebody scrapes."""
    metrics.gauge(
        "ringfence_ca_reachable",
        "1 while the last request to the CA succeeded.",
        lambda: float(identities.ca_error is None),
    )
    metrics.gauge(
        "ringfence_certificate_expiry_seconds",
        "Seconds until the certificate of an identity expires.",
        lambda: _expiries(identities),
        labels=("identity",),
    )
    metrics.gauge(
        "ringfence_certificates_expiring",
        "Certificates that could not be renewed and are near their end.",
        lambda: float(identities.expiring()),
    )
    metrics.gauge(
        "ringfence_ca_clock_ahead_seconds",
        "How far this node's clock is ahead of the CA's, as of its last reply; negative when it is behind.",
        identities.clock_ahead_s,
    )
    metrics.gauge(
        "ringfence_trust_version",
        "The version of the CA's trust that is in force; 0 before the CA has told one.",
        lambda: float(watch.acknowledged),
    )
    metrics.gauge("ringfence_revocations", "Revocations in force.", lambda: float(len(trust.trust.revocations)))
    metrics.gauge(
        "ringfence_registry_problems",
        "Manifest files or objects that are not in force.",
        lambda: float(len(report.directory.problems)),
    )
    metrics.gauge(
        "ringfence_registry_age_seconds",
        "Since the last change of the manifests was taken in; nothing before the first.",
        lambda: _registry_age(report),
    )


def _registry_age(report: Report) -> dict[tuple[str, ...], float]:
    return {} if report.loaded_at is None else {(): trio.current_time() - report.loaded_at}


def _expiries(identities: Identities) -> dict[tuple[str, ...], float]:
    at = datetime.now(UTC)
    rows: Iterable[dict[str, object]] = identities.status()
    return {
        (str(row["identity"]),): (datetime.fromisoformat(str(row["not_after"])) - at).total_seconds()
        for row in rows
        if row["not_after"]
    }
