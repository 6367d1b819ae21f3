"""What the authority's log says of requests, and how often."""

import logging

import pytest

from ca.authority.errors import StoreError
from ca.authority.issue_log import RefusalLog


def test_a_database_that_is_gone_does_not_fill_the_log_and_what_was_left_out_is_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("ca.authority.issue_log.time.monotonic", lambda: now[0])
    found = RefusalLog()
    with caplog.at_level(logging.INFO, logger="ringfence.ca"):
        for _ in range(1000):
            try:
                raise StoreError("the database is gone")
            except StoreError:
                found.store_failed("store_failed", requests=2)
        assert 1 <= len(caplog.records) <= 20
        written = len(caplog.records)
        now[0] += 60
        try:
            raise StoreError("still gone")
        except StoreError:
            found.store_failed("store_failed", requests=2)
    last = caplog.records[-1]
    assert last.exc_info is not None
    assert "still gone" in str(last.exc_info[1])
    assert vars(last)["fields"] == {"requests": 2, "left_out": 1000 - written}
