"""Which replica of the CA is asked first: all in turn, those that failed last."""

from collections import Counter
from random import Random

from ca.addresses import AVOID_S, Replica, Replicas


def replica(ip: str, *, name: str | None = None) -> Replica:
    return Replica(name=name or ip, ip=ip, port=15012)


A, B, C = replica("10.0.0.1"), replica("10.0.0.2"), replica("10.0.0.3")


def test_requests_are_spread_over_all() -> None:
    replicas = Replicas(rng=Random(1))
    first = Counter(replicas.order([A, B, C], now=0.0)[0] for _ in range(3000))
    assert set(first) == {A, B, C}
    assert min(first.values()) > 800


def test_each_is_tried_once_whatever_names_lead_to_it() -> None:
    replicas = Replicas(rng=Random(1))
    assert sorted(replicas.order([A, B, A], now=0.0), key=str) == [A, B]
    assert replicas.order([], now=0.0) == []


def test_one_that_failed_comes_last_until_it_answers_or_time_has_passed() -> None:
    replicas = Replicas(rng=Random(1))
    replicas.failed(A, now=100.0)
    assert all(replicas.order([A, B, C], now=100.0 + AVOID_S - 1)[-1] == A for _ in range(50))
    assert any(replicas.order([A, B, C], now=100.0 + AVOID_S)[0] == A for _ in range(50))

    replicas.failed(B, now=200.0)
    replicas.worked(B)
    assert any(replicas.order([A, B], now=201.0)[0] == B for _ in range(50))


def test_when_all_failed_the_one_that_failed_first_is_tried_first() -> None:
    replicas = Replicas(rng=Random(1))
    for at, each in enumerate((B, C, A)):
        replicas.failed(each, now=float(at))
    assert list(replicas.order([A, B, C], now=5.0)) == [B, C, A]


def test_the_resolvers_family_comes_first() -> None:
    replicas = Replicas(rng=Random(1))
    six, also_six = replica("fd00::1", name="ca"), replica("fd00::2", name="ca")
    for _ in range(20):
        assert [":" in each.ip for each in replicas.order([six, also_six, A, B], now=0.0)] == [True, True, False, False]
        assert [":" in each.ip for each in replicas.order([A, six, B], now=0.0)] == [False, False, True]


def test_the_name_is_shown_with_its_address() -> None:
    assert str(A) == "the CA at 10.0.0.1 port 15012"
    assert str(replica("10.0.0.1", name="ca.example")) == "the CA at ca.example (10.0.0.1) port 15012"
