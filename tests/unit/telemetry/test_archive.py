"""Past connections are found by their id, the denied ones for longer, at a few hundred KB."""

import json

from node_agent.telemetry.archive import RecordArchive, find_record


def _record(number: int, reason: str = "ok") -> str:
    return json.dumps(
        {"id": f"node1-1799f1-{number}", "close_reason": reason, "detail": f'"id":"node1-1799f1-{number - 1}",'},
        separators=(",", ":"),
    )


def test_the_last_four_thousand_are_found_whole_and_a_foreign_id_is_not() -> None:
    archive = RecordArchive()
    for number in range(10_000):
        archive.add(_record(number), keep=False)
    for number in (9_999, 9_000, 10_000 - 4_096 + 64):
        assert find_record(archive.blocks(), f"node1-1799f1-{number}") == json.loads(_record(number))
    assert find_record(archive.blocks(), "node1-1799f1-5000") is None
    assert find_record(archive.blocks(), 'x"') is None
    assert find_record(RecordArchive().blocks(), "node1-1799f1-1") is None


def test_who_was_denied_is_remembered_for_longer() -> None:
    archive = RecordArchive()
    archive.add(_record(1, "policy_denied"), keep=True)
    for number in range(2, 10_000):
        archive.add(_record(number), keep=False)
    found = find_record(archive.blocks(), "node1-1799f1-1")
    assert found is not None
    assert found["close_reason"] == "policy_denied"


def test_it_takes_some_hundred_kilobytes() -> None:
    archive = RecordArchive()
    for number in range(10_000):
        archive.add(_record(number) + " " * 600 + str(number * 7919), keep=True)
    assert sum(map(len, archive.blocks())) < 500_000
