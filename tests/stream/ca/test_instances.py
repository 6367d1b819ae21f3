"""Machines attest once, on both databases, whoever asks at the same moment."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ca.authority.records import CertificateRecord, Instance, InstanceRecord
from ca.authority.store import JournalEntry, Store

AT = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
MACHINE = Instance(method="instance_document", id="1/i-1")
_EVERYBODY = 4


@pytest.fixture(params=["sqlite", "postgresql"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[Store]]:
    """As many as replicas, on one database."""
    location = tmp_path / "authority.db" if request.param == "sqlite" else request.getfixturevalue("address")
    with ExitStack() as stack:
        yield [stack.enter_context(closing(Store.open(location, create=number == 0))) for number in range(_EVERYBODY)]


def entry(serial: int, machine: Instance | None = MACHINE, *, node: str = "node-1") -> JournalEntry:
    record = CertificateRecord(
        serial=serial,
        identity=f"spiffe://cluster.local/ringfence/node/{node}",
        node=node,
        not_before=AT,
        not_after=AT + timedelta(hours=1),
        issued_at=AT,
        attestation="instance_document",
        requester="[::1]:4000",
        issuer_key_id="ab",
    )
    return JournalEntry(records=(record,), instance=machine)


def test_a_machine_is_used_up_with_the_certificate_that_it_buys(stores: list[Store]) -> None:
    first, second, *_ = stores
    assert first.journal_all([entry(1)], at=AT) == [True]
    assert second.journal_all([entry(2), entry(3, None), entry(4, node="node-2")], at=AT) == [False, True, False]
    assert [each.serial for each in first.certificates()] == [1, 3]
    assert second.instances.read() == [InstanceRecord(instance=MACHINE, node="node-1", attested_at=AT)]


def test_of_two_in_one_group_the_first_is_journalled(stores: list[Store]) -> None:
    other = Instance(method="instance_document", id="1/i-2")
    assert stores[0].journal_all([entry(1), entry(2), entry(3, other)], at=AT) == [True, False, True]
    assert [each.serial for each in stores[0].certificates()] == [1, 3]


def test_of_many_at_the_same_moment_exactly_one_is_journalled(stores: list[Store]) -> None:
    gate = threading.Barrier(_EVERYBODY, timeout=30)

    def use(number: int, store: Store) -> list[bool]:
        machines = [Instance(method="m", id=f"{attempt}/{each}") for each in ("a", "b")]
        both = [entry(serial := attempt * 100 + number * 2, machines[0]), entry(serial + 1, machines[1])]
        gate.wait()
        return store.journal_all(both if number % 2 else both[::-1], at=AT)

    for attempt in range(10):
        with ThreadPoolExecutor(_EVERYBODY) as pool:
            won = list(pool.map(use, range(_EVERYBODY), stores))
        assert sum(sum(each) for each in won) == 2
        assert stores[0].certificate_count() == 2 * (attempt + 1)


def test_a_machine_that_is_forgotten_may_attest_once_more(stores: list[Store]) -> None:
    first, second, *_ = stores
    first.journal_all([entry(1)], at=AT)
    assert not second.instances.forget("1/i-2")
    assert second.instances.forget("1/i-1")
    assert not second.instances.forget("1/i-1")
    assert first.journal_all([entry(2)], at=AT) == [True]
