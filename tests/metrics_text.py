"""What a scrape of some metrics is, and what the official parser makes of it."""

from collections.abc import Iterable

from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from node_agent.telemetry.exposition import Format, render
from node_agent.telemetry.metrics import FamilyReading, Metrics

Found = dict[str, dict[tuple[str, ...], float]]


def text_of(metrics: Metrics | Iterable[FamilyReading], form: Format = Format.TEXT) -> str:
    families = metrics.read() if isinstance(metrics, Metrics) else metrics
    return b"".join(render(families, form)).decode()


def parsed(metrics: Metrics | Iterable[FamilyReading], form: Format = Format.TEXT) -> Found:
    """Values by the name of the sample and its label values, in the alphabetical order of the labels."""
    text = text_of(metrics, form)
    found: Found = {}
    for family in (read_openmetrics if form is Format.OPENMETRICS else text_string_to_metric_families)(text):
        for sample in family.samples:
            values = tuple(value for _, value in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[values] = sample.value
    return found
