"""Worker processes that share checks: one checks, all know, and nobody waits for one that is gone."""

from ca.manifests.traffic import HealthCheck
from node_agent.balance.health import Target
from node_agent.balance.health_shares import HealthShares
from node_agent.balance.limits import LedgerFullError, LocalLedger
from node_agent.model import EndpointAddress

_TARGET = Target(EndpointAddress("10.1.0.1", 8080), "uid", HealthCheck(interval_s=5.0, timeout_s=1.0))
_OTHER = _TARGET._replace(address=EndpointAddress("10.1.0.2", 8080))


def test_who_checks_a_target_keeps_it_and_the_others_get_another() -> None:
    ledger = LocalLedger()
    one, two = HealthShares(ledger), HealthShares(ledger)
    for interval in range(10):
        assert one.take(_TARGET, interval * 5.0)
        assert not two.take(_TARGET, interval * 5.0 + 4.9)
        assert two.take(_OTHER, interval * 5.0 + 1.0)
        assert not one.take(_OTHER, interval * 5.0 + 2.0)


def test_a_late_check_does_not_lose_its_target() -> None:
    ledger = LocalLedger()
    one, two = HealthShares(ledger), HealthShares(ledger)
    assert one.take(_TARGET, 0.0)
    assert not two.take(_TARGET, 9.0), "it may take twice its timeout, and a while"
    assert one.take(_TARGET, 9.0)


def test_the_target_of_one_that_checks_no_more_goes_to_the_next_that_asks() -> None:
    ledger = LocalLedger()
    one, two = HealthShares(ledger), HealthShares(ledger)
    assert one.take(_TARGET, 0.0)
    assert two.take(_TARGET, 10.0)
    assert not one.take(_TARGET, 10.1)
    assert not one.take(_TARGET, 12.0)
    assert two.take(_TARGET, 15.0)


def test_what_one_found_the_others_know_and_only_they() -> None:
    ledger = LocalLedger()
    one, two = HealthShares(ledger), HealthShares(ledger)
    for _ in range(2):  # said twice is said once
        one.publish(_TARGET, True, 0.0)
    assert two.is_unhealthy_elsewhere(_TARGET)
    assert not one.is_unhealthy_elsewhere(_TARGET)
    assert not two.is_unhealthy_elsewhere(_OTHER)
    two.publish(_TARGET, True, 0.0)
    assert one.is_unhealthy_elsewhere(_TARGET)
    for _ in range(2):
        one.publish(_TARGET, False, 1.0)
    assert not two.is_unhealthy_elsewhere(_TARGET)
    assert one.is_unhealthy_elsewhere(_TARGET)


def test_without_room_to_share_everybody_checks() -> None:
    class Full(LocalLedger):
        def add(self, key: str, change: int, now: float) -> None:
            raise LedgerFullError

        def set_full_at(self, key: str, full_at: float, now: float) -> None:
            raise LedgerFullError

    ledger = Full()
    one, two = HealthShares(ledger), HealthShares(ledger)
    assert one.take(_TARGET, 0.0)
    assert two.take(_TARGET, 0.0)
    one.publish(_TARGET, True, 0.0)
    assert not two.is_unhealthy_elsewhere(_TARGET)
    one.publish(_TARGET, False, 0.0)
