"""How long a new root is published before it is used, where other trust domains fetch our bundle."""

from datetime import UTC, datetime, timedelta

import pytest

from ca.authority.errors import AuthorityError
from ca.authority.federation.schedule import usable_at
from ca.authority.federation.settings import BundleEndpointSettings
from node_agent.cli.ca.wait import wait_for_federation

_SERVED = BundleEndpointSettings(host=None, port=15013, refresh_hint_s=60)


def test_a_root_is_published_for_five_refresh_hints() -> None:
    at = datetime(2026, 11, 22, tzinfo=UTC)
    assert usable_at(at, refresh_hint_s=60) - at == timedelta(minutes=5)


def test_who_serves_no_bundle_and_who_has_waited_goes_on_at_once() -> None:
    now = datetime.now(UTC)
    wait_for_federation(None, published_at=now, timeout_s=1)
    wait_for_federation(_SERVED, published_at=now - timedelta(seconds=301), timeout_s=1)


def test_who_has_not_the_time_is_told_when_to_come_again() -> None:
    published_at = datetime.now(UTC)
    with pytest.raises(AuthorityError, match="it stays published") as caught:
        wait_for_federation(_SERVED, published_at=published_at, timeout_s=100)
    assert f"{published_at + timedelta(seconds=300):%H:%M:%S} UTC" in str(caught.value)
