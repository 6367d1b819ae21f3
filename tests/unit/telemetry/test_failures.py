"""Connections that did not end well are counted by service and reason, within bounds."""

from node_agent.errors import CloseReason
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
    assert counted(metrics) == {("outbound", "unknown", "policy_denied"): 2}


def test_the_number_of_series_is_bounded() -> None:
    metrics = Metrics()
    log = AccessLog(metrics=metrics, node="n", max_label_sets=2)
    reasons = [reason for reason in CloseReason if reason is not CloseReason.OK][:4]
    for reason in reasons:
        end(log, reason)
    assert sum(counted(metrics).values()) == 4
    assert [service for _, service, _ in counted(metrics)] == ["unknown", "unknown", "other", "other"]
