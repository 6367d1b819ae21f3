"""A collector, and what is logged as access records."""

import logging
from collections.abc import Iterator

import pytest

from node_agent.telemetry.access_log import ACCESS_LOGGER
from tests.otlp_collector import OtlpCollector


@pytest.fixture
def collector() -> Iterator[OtlpCollector]:
    with OtlpCollector() as made:
        yield made


@pytest.fixture
def access_records() -> Iterator[list[str]]:
    """The texts that are logged as access records."""
    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger, keep = logging.getLogger(ACCESS_LOGGER), Keep()
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(keep)
    yield found
    logger.removeHandler(keep)
    logger.setLevel(before[0])
    logger.propagate = before[1]
