"""Connections that did not end well are counted by service and reason, within bounds."""

from ca.spiffe import SpiffeId
from node_agent.errors import CloseReason
from node_agent.model import ObjectName, ServicePort, Workload
from node_agent.telemetry.access_log import AccessLog
from node_agent.telemetry.failures import NAME
from node_agent.telemetry.metrics import Metrics


def counted(metrics: Metrics) -> dict[tuple[str, ...], float]:
    return {
        sample.values: sample.value for family in metrics.read() if family.name == NAME for sample in family.samples
    }


def end(log: AccessLog, reason: CloseReason) -> None:
    with log.connection("outbound") as record:
        record.close_because(reason)


def test_what_ends_well_is_no_failure() -> None:
    metrics = Metrics()
    log = AccessLog(metrics=metrics, node="n")
    end(log, CloseReason.OK)
    assert counted(metrics) == {}
    for _ in range(2):
        end(log, CloseReason.POLICY_DENIED)
    assert counted(metrics) == {("outbound", "unknown", "unknown", "policy_denied"): 2}


def test_the_number_of_series_is_bounded() -> None:
    metrics = Metrics()
    log = AccessLog(metrics=metrics, node="n", max_label_sets=2)
    reasons = [reason for reason in CloseReason if reason is not CloseReason.OK][:4]
    for reason in reasons:
        end(log, reason)
    assert sum(counted(metrics).values()) == 4
    assert [labels[1:3] for labels in counted(metrics)] == [(each, each) for each in ["unknown"] * 2 + ["other"] * 2]


def test_a_service_and_a_workload_are_not_mistaken_for_each_other() -> None:
    """Inbound nobody says which service was asked for: it is unknown, and not the pod's name."""
    metrics = Metrics()
    log = AccessLog(metrics=metrics, node="n")
    workload = _workload("web-5d9f-x2x4z", {"pod-template-hash": "5d9f"})
    with log.connection("inbound") as record:
        record.note(destination=workload)
        record.close_because(CloseReason.CONNECT_REFUSED)
    with log.connection("outbound") as record:
        record.note(service=ServicePort(service=ObjectName("shop", "web"), port=80))
        record.close_because(CloseReason.NO_SERVICE_ENDPOINTS)
    assert counted(metrics) == {
        ("inbound", "unknown", "shop/web", "connect_refused"): 1,
        ("outbound", "shop/web", "unknown", "no_endpoints"): 1,
    }


def _workload(name: str, labels: dict[str, str]) -> Workload:
    return Workload(
        uid=name,
        name=ObjectName("shop", name),
        service_account="web",
        node="n",
        addresses=("10.1.0.1",),
        identity=SpiffeId.workload("example.org", "shop", "web"),
        enrolled=True,
        labels=labels,
    )
