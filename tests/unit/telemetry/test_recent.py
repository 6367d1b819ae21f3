"""The records that are kept for a look back."""

import json

from node_agent.errors import CloseReason
from node_agent.telemetry.recent import RecentRecords


def _text(name: str) -> str:
    return json.dumps({"id": name})


def _ids(records: RecentRecords) -> list[str]:
    return [row["id"] for row in records.rows()]


def test_the_newest_record_comes_first_and_the_oldest_goes() -> None:
    records = RecentRecords(last=2, last_failed=1)
    for name in ("a", "b", "c"):
        records.add(_text(name), CloseReason.OK)

    assert _ids(records) == ["c", "b"]


def test_a_refused_connection_outlasts_a_storm_of_good_ones() -> None:
    records = RecentRecords(last=2, last_failed=1)
    records.add(_text("refused"), CloseReason.PLAINTEXT_REFUSED)
    for name in ("a", "b", "c"):
        records.add(_text(name), CloseReason.OK)

    assert _ids(records) == ["c", "b", "refused"]


def test_a_record_that_is_in_both_rings_is_told_once() -> None:
    records = RecentRecords(last=3, last_failed=3)
    records.add(_text("refused"), CloseReason.POLICY_DENIED)
    records.add(_text("good"), CloseReason.OK)

    assert _ids(records) == ["good", "refused"]
