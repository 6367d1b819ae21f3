"""Limits and buckets, against what must hold whatever the interleaving, in one process and over shared memory."""

import contextlib
import multiprocessing
import os
import random
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from ca.manifests.traffic import Fault, Limits, RateLimit
from node_agent.balance.bucket import Bucket
from node_agent.balance.faults import draw
from node_agent.balance.limits import Admitted, Breach, Breaker, ByteBudget, Ledger, LocalLedger
from node_agent.workers.ledger import SharedLedger

_SOURCES = ("a", "b", "c")
_NO_RATE = RateLimit()


class _Processes:
    """The ledgers of several workers, and of their parent, without the processes."""

    def __init__(self, workers: int) -> None:
        self.parent, fd = SharedLedger.create(workers)
        self.workers = [SharedLedger(fd, workers=workers, worker=number + 1) for number in range(workers)]
        os.close(fd)

    def close(self) -> None:
        for ledger in (self.parent, *self.workers):
            ledger.close()


@contextlib.contextmanager
def _processes(workers: int) -> Iterator[_Processes]:
    made = _Processes(workers)
    try:
        yield made
    finally:
        made.close()


class Interleaving(RuleBasedStateMachine):
    """Workers that admit, connect, release and die in any order, against a list of who is there."""

    connections: Bundle[tuple[int, str, Admitted]] = Bundle("connections")

    @initialize(
        workers=st.integers(1, 3),
        limits=st.builds(
            Limits,
            max_connections=st.none() | st.integers(1, 5),
            max_pending_connects=st.none() | st.integers(1, 3),
            max_connections_per_source=st.none() | st.integers(1, 3),
        ),
    )
    def begin(self, workers: int, limits: Limits) -> None:
        self.processes = _Processes(workers)
        self.breakers = [Breaker(ledger) for ledger in self.processes.workers]
        self.limits = limits
        self.open: dict[Admitted, tuple[int, str]] = {}
        self.pending: set[Admitted] = set()
        self.now = 0.0

    def teardown(self) -> None:
        if hasattr(self, "processes"):
            self.processes.close()

    @rule(target=connections, worker=st.integers(0, 2), source=st.sampled_from(_SOURCES))
    def admit(
        self, worker: int, source: str
    ) -> "tuple[int, str, Admitted] | MultipleResults[tuple[int, str, Admitted]]":
        worker %= len(self.breakers)
        admitted = self.breakers[worker].admit("s", source, self.limits, _NO_RATE, self.now)
        limits, by_source = self.limits, Counter(source for _, source in self.open.values())
        reached = [
            name
            for name, most, count in (
                ("maxConnections", limits.max_connections, len(self.open)),
                ("maxPendingConnects", limits.max_pending_connects, len(self.pending)),
                ("maxConnectionsPerSource", limits.max_connections_per_source, by_source[source]),
            )
            if most is not None and count >= most
        ]
        if isinstance(admitted, Breach):
            assert admitted.limit == reached[0], "refused without a reason"
            return multiple()
        assert not reached, f"let in over {reached}"
        self.open[admitted] = (worker, source)
        self.pending.add(admitted)
        return (worker, source, admitted)

    @rule(connection=connections)
    def connect(self, connection: tuple[int, str, Admitted]) -> None:
        connection[2].connected(self.now)
        self.pending.discard(connection[2])

    @rule(connection=consumes(connections), twice=st.booleans())
    def release(self, connection: tuple[int, str, Admitted], twice: bool) -> None:
        if connection[2] not in self.open:
            return  # its worker is dead
        for _ in range(1 + twice):
            connection[2].release(self.now)
        self.open.pop(connection[2])
        self.pending.discard(connection[2])

    @rule(worker=st.integers(0, 2))
    def kill(self, worker: int) -> None:
        worker %= len(self.breakers)
        self.processes.parent.forget(worker + 1)
        dead = [each for each, (number, _) in self.open.items() if number == worker]
        for each in dead:
            del self.open[each]
            self.pending.discard(each)
            each._counted = ()  # its memory is gone: nobody will ever release it

    @rule(
        limits=st.builds(
            Limits,
            max_connections=st.integers(1, 5),
            max_connections_per_source=st.none() | st.integers(1, 3),
        )
    )
    def change(self, limits: Limits) -> None:
        """What is there counts under the new limits, if there were any before."""
        if self.limits != Limits() or not self.open:
            self.limits = limits

    @invariant()
    def nothing_is_left_behind(self) -> None:
        if hasattr(self, "limits") and self.limits != Limits():
            ledger: Ledger = self.processes.parent
            with ledger.locked():
                assert ledger.count("s open") == len(self.open)
                assert ledger.count("s pending") == len(self.pending)
                by_source = Counter(source for _, source in self.open.values())
                assert all(ledger.count(f"s open {source}") == by_source[source] for source in _SOURCES)


TestInterleaving = Interleaving.TestCase
TestInterleaving.settings = settings(deadline=None)


def _hammer(fd: int, worker: int, seed: int, results: "multiprocessing.Queue[int]") -> None:
    ledger = SharedLedger(fd, workers=3, worker=worker)
    breaker = Breaker(ledger)
    rng = random.Random(seed)
    mine: list[Admitted] = []
    most = 0
    for _ in range(3000):
        if mine and rng.random() < 0.5:
            mine.pop().release(0.0)
        else:
            admitted = breaker.admit("s", "a", Limits(max_connections=7), _NO_RATE, 0.0)
            if isinstance(admitted, Admitted):
                mine.append(admitted)
        with ledger.locked():
            most = max(most, ledger.count("s open"))
    for each in mine:
        each.release(0.0)
    results.put(most)


def test_processes_together_never_let_in_more_than_the_limit() -> None:
    context = multiprocessing.get_context("spawn")
    parent, fd = SharedLedger.create(3)
    os.set_inheritable(fd, True)
    results = context.Queue()
    # A spawned process has none of our descriptors, but it may open ours by the process's number.
    path = f"/proc/{os.getpid()}/fd/{fd}"
    started = [context.Process(target=_hammer_path, args=(path, number + 1, number, results)) for number in range(3)]
    try:
        for each in started:
            each.start()
        found = [results.get(timeout=60) for _ in started]
        for each in started:
            each.join(60)
        assert all(most <= 7 for most in found)
        assert max(found) == 7, "they met the limit"
        with parent.locked():
            assert parent.count("s open") == 0
    finally:
        for each in started:
            each.kill()
        os.close(fd)
        parent.close()


def _hammer_path(path: str, worker: int, seed: int, results: "multiprocessing.Queue[int]") -> None:
    fd = os.open(path, os.O_RDWR)
    _hammer(fd, worker, seed, results)
    os.close(fd)


@settings(deadline=None)
@given(
    rate=st.floats(0.1, 1000.0),
    burst=st.integers(1, 50),
    gaps=st.lists(st.floats(0.0, 2.0), min_size=1, max_size=200),
)
def test_a_rate_lets_in_a_burst_and_then_so_many_a_second(rate: float, burst: int, gaps: list[float]) -> None:
    """Against a bucket that is kept the long way; in any stretch of time at most burst + rate * time."""
    with _processes(2) as processes:
        ledgers: list[Ledger] = [*processes.workers]
        breakers = [Breaker(each) for each in ledgers]
        limit = RateLimit(connections_per_s=rate, connections_burst=burst)
        now, tokens, let_in = 1000.0, float(burst), []
        for number, gap in enumerate(gaps):
            now += gap
            tokens = min(float(burst), tokens + gap * rate)
            result = breakers[number % 2].admit("s", "a", Limits(), limit, now)
            if isinstance(result, Admitted):
                assert tokens > 1 - 1e-6
                tokens -= 1
                let_in.append(now)
            else:
                assert result == Breach(limit="connectionsPerSecond", value=rate, is_rate=True)
                assert tokens < 1 + 1e-6
        for first in range(len(let_in)):
            for last in range(first, len(let_in)):
                assert last - first + 1 <= burst + rate * (let_in[last] - let_in[first]) + 1e-6


@settings(deadline=None)
@given(
    rate=st.floats(10.0, 1e9),
    share=st.floats(0.01, 2.0),
    reads=st.lists(st.tuples(st.integers(1, 256 * 1024), st.integers(0, 3)), min_size=1, max_size=60),
)
def test_bytes_are_paced_to_within_a_read_of_each_connection(
    rate: float, share: float, reads: list[tuple[int, int]]
) -> None:
    """Four connections of two workers share a bucket; each reads, pays, and waits as long as it is told."""
    burst = rate * share
    limit = RateLimit(bytes_per_s=rate, bytes_burst=burst)
    with _processes(2) as processes:
        budgets = [ByteBudget(processes.workers[number % 2], "s", "a", limit) for number in range(4)]
        free_at = [0.0] * 4
        burst = max(burst, rate * 0.02)  # timers are late: what comes meanwhile is kept
        now, moved, largest = 0.0, 0, 0
        for size, number in reads:
            now = max(now, free_at[number])
            if (wait_s := budgets[number].pay(0, now)) > 0:
                now += wait_s  # somebody else has used it up: it looks again before it reads (relay/meter.py)
            free_at[number] = now + budgets[number].pay(size, now)
            moved += size
            largest = max(largest, size)
            assert moved <= burst + rate * now + largest + 1e-3 * moved
        settled = now + budgets[0].pay(0, now)
        if settled > now:
            assert moved == pytest.approx(burst + rate * settled, rel=1e-6), "and no slower"


def test_connections_under_a_rate_of_before_do_not_hold_up_those_under_the_new_one() -> None:
    ledger = LocalLedger()
    slow = ByteBudget(ledger, "s", "a", RateLimit(bytes_per_s=10.0, bytes_burst=100.0))
    assert slow.pay(1100, 0.0) == 100.0
    fast = ByteBudget(ledger, "s", "a", RateLimit(bytes_per_s=1000.0, bytes_burst=20.0))
    assert fast.pay(0, 0.0) == 0.0
    assert fast.pay(1020, 0.0) == 1.0


def test_sources_share_a_bucket_unless_each_has_its_own() -> None:
    for per_source in (False, True):
        ledger = LocalLedger()
        rate = RateLimit(bytes_per_s=10.0, bytes_burst=10.0, per_source=per_source)
        ByteBudget(ledger, "s", "a", rate).pay(110, 0.0)
        assert ByteBudget(ledger, "s", "b", rate).pay(0, 0.0) == (0.0 if per_source else 10.0)


def test_a_bucket_that_nobody_uses_is_as_if_it_had_never_been() -> None:
    bucket = Bucket(rate_per_s=2.0, burst=4.0)
    full_at = 0.0
    for _ in range(4):
        taken = bucket.take(full_at, 1.0, 100.0)
        assert taken is not None
        full_at = taken
    assert bucket.take(full_at, 1.0, 100.0) is None
    assert full_at == 102.0
    assert bucket.take(full_at, 1.0, 100.5) == 102.5
    assert bucket.take(full_at, 4.0, 500.0) == 502.0


def test_a_row_that_says_nothing_is_the_next_keys_and_others_are_kept() -> None:
    """Many more keys than there is room for, a few of which count."""
    with _processes(1) as processes:
        (ledger,) = processes.workers
        with ledger.locked():
            for number in range(100):
                ledger.add(f"kept {number}", 1, 0.0)
            ledger.set_full_at("in debt", 1e9, 0.0)
            for number in range(70_000):
                ledger.set_full_at(f"gone {number}", float(number), float(number))
            assert all(ledger.count(f"kept {number}") == 1 for number in range(100))
            assert ledger.full_at("in debt") == 1e9


def test_a_ledger_without_room_refuses_and_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node_agent.workers.ledger._SETS", 1)
    monkeypatch.setattr("node_agent.workers.ledger._WAYS", 4)
    with _processes(1) as processes:
        breaker = Breaker(processes.workers[0])
        first = breaker.admit("s", "a", Limits(max_connections=9), _NO_RATE, 0.0)  # three rows
        assert isinstance(first, Admitted)
        assert breaker.admit("s", "b", Limits(max_connections=9), _NO_RATE, 0.0) is not None  # the fourth
        assert breaker.admit("s", "c", Limits(max_connections=9), _NO_RATE, 0.0) == Breach(limit=None)
        with processes.parent.locked():
            assert processes.parent.count("s open") == 2
            assert processes.parent.count("s pending") == 2
        limit = RateLimit(bytes_per_s=10.0, bytes_burst=10.0)
        assert ByteBudget(processes.workers[0], "s", "c", limit).pay(20, 0.0) == 1.0, "who is not known waits as well"


def test_the_ledger_of_one_process_forgets_buckets_that_are_full() -> None:
    ledger = LocalLedger()
    for number in range(5000):
        ledger.set_full_at(f"{number}", number + 1.0, float(number))
    assert len(ledger._full_at) <= 1025
    assert ledger.full_at("4999") == 5000.0


@given(
    percents=st.lists(st.floats(0, 100), max_size=5),
    named=st.lists(st.booleans(), min_size=5, max_size=5),
    drawn=st.floats(0, 1, exclude_max=True),
    source=st.sampled_from(["a", "b"]),
)
def test_a_connection_gets_one_fault_of_those_that_are_for_it(
    percents: list[float], named: list[bool], drawn: float, source: str
) -> None:
    faults = [
        Fault(percent=percent, sources=("a",) if is_named else (), refuse=True)
        for percent, is_named in zip(percents, named, strict=False)
    ]
    bounds, fault = [], draw(faults, source, drawn)
    upper = 0.0
    for each in faults:
        if not each.sources or source in each.sources:
            bounds.append((upper, upper + each.percent, each))
            upper += each.percent
    if fault is None:
        assert drawn * 100 >= upper - 1e-6
    else:
        assert any(low - 1e-6 <= drawn * 100 < high + 1e-6 for low, high, each in bounds if each is fault)
        assert fault.percent > 0


def test_hundred_percent_is_everybody_and_none_is_nobody() -> None:
    everybody, nobody = Fault(percent=100, refuse=True), Fault(percent=0, refuse=True)
    for drawn in (0.0, 0.5, 1 - 2**-53):
        assert draw([everybody], "a", drawn) is everybody
        assert draw([nobody], "a", drawn) is None
        assert draw([nobody, everybody], "a", drawn) is everybody
