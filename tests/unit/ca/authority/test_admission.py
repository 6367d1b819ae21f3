"""Who is let in, who is billed, and who is not starved by whom."""

import pytest

from ca.authority.admission import Admission, Visit, network_of
from ca.authority.limits import LimitSettings
from ca.spiffe import SpiffeId

NODE = SpiffeId.node("cluster.local", "node-1")
OTHER = SpiffeId.node("cluster.local", "node-2")


def admitted(admission: Admission, host: str, *, now: float = 0.0) -> Visit:
    visit = admission.open(host, now=now)
    assert isinstance(visit, Visit), visit
    return visit


def over(found: tuple[str, float] | None) -> tuple[str, float]:
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("host", "billed"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_an_ipv6_network_is_billed_as_one(host: str, billed: str) -> None:
    assert network_of(host) == billed


def test_one_address_has_so_many_connections_at_once_and_another_its_own() -> None:
    admission = Admission(LimitSettings(address_connections=3))
    first = admitted(admission, "10.0.0.1")
    for _ in range(2):
        admitted(admission, "10.0.0.1")
    assert admission.open("10.0.0.1", now=0.0) == "address_connections"
    admitted(admission, "10.0.0.2")
    admission.close(first)
    admitted(admission, "10.0.0.1")


def test_connections_a_minute_are_limited_until_they_prove_a_node() -> None:
    admission = Admission(LimitSettings(address_connections_a_minute=60))
    for _ in range(15):
        admission.close(admitted(admission, "10.0.0.1"))
    assert admission.open("10.0.0.1", now=0.0) == "address_connections_a_minute"
    admission.close(admitted(admission, "10.0.0.1", now=1.0))


def test_a_thousand_nodes_behind_one_address_are_not_a_flood() -> None:
    admission = Admission(LimitSettings(address_connections_a_minute=60, address_connections=2))
    for number in range(1000):
        visit = admitted(admission, "10.0.0.1")
        assert admission.prove(visit, SpiffeId.node("cluster.local", f"node-{number}"), now=0.0) is None


def test_those_who_prove_nothing_never_get_all_connections() -> None:
    admission = Admission(LimitSettings(connections=100))
    strangers = [admission.open(f"10.0.0.{number}", now=0.0) for number in range(100)]
    assert [each for each in strangers if not isinstance(each, Visit)] == ["unproved_connections"] * 25
    proving = strangers[0]
    assert isinstance(proving, Visit)
    admission.prove(proving, NODE, now=0.0)
    admitted(admission, "10.0.1.1")


def test_a_flood_leaves_room_for_the_next_connection_of_a_node_that_was_here() -> None:
    admission = Admission(LimitSettings(connections=100))
    visit = admitted(admission, "10.9.0.1")
    admission.prove(visit, NODE, now=0.0)
    admission.close(visit)
    strangers = [admission.open(f"10.0.0.{number}", now=0.0) for number in range(100)]
    assert strangers[-1] == "unproved_connections"
    assert admission.prove(admitted(admission, "10.9.0.1"), NODE, now=0.0) is None


def test_all_connections_are_bounded() -> None:
    admission = Admission(LimitSettings(connections=10))
    for number in range(10):
        admission.prove(admitted(admission, f"10.0.0.{number}"), SpiffeId.node("cluster.local", f"n{number}"), now=0.0)
    assert admission.open("10.0.1.1", now=0.0) == "connections"


def test_a_node_with_too_many_connections_is_told_and_its_address_pays() -> None:
    admission = Admission(LimitSettings(node_connections=2, address_connections_a_minute=60))
    outcomes = []
    for _ in range(20):
        visit = admission.open("10.0.0.1", now=0.0)
        outcomes.append(admission.prove(visit, NODE, now=0.0) if isinstance(visit, Visit) else visit)
    assert outcomes[:2] == [None, None]
    assert outcomes[2:17] == ["node_connections"] * 15
    assert outcomes[17:] == ["address_connections_a_minute"] * 3
    assert admission.prove(admitted(admission, "10.0.0.2"), OTHER, now=0.0) is None


def test_what_was_opened_and_closed_leaves_nothing_behind() -> None:
    admission = Admission(LimitSettings())
    visits = [admitted(admission, "10.0.0.1") for _ in range(5)]
    admission.prove(visits[0], NODE, now=0.0)
    for visit in visits:
        admission.close(visit)
    assert admission.connections == 0
    assert not admission._unproved
    assert not admission._of_nodes


def test_a_node_is_limited_in_requests_and_in_certificates() -> None:
    admission = Admission(LimitSettings(node_requests_a_minute=60, node_certificates_a_minute=6000))
    visit = admitted(admission, "10.0.0.1")
    admission.prove(visit, NODE, now=0.0)
    for _ in range(3):
        assert admission.ask(visit, certificates=500, now=0.0) is None
    limit, wait_s = over(admission.ask(visit, certificates=500, now=0.0))
    assert (limit, round(wait_s, 3)) == ("node_certificates_a_minute", 5.0)
    for _ in range(11):
        assert admission.ask(visit, certificates=0, now=0.0) is None
    limit, wait_s = over(admission.ask(visit, certificates=0, now=0.0))
    assert (limit, round(wait_s, 3)) == ("node_requests_a_minute", 1.0)


def test_a_nodes_connections_share_its_limit_and_another_node_has_its_own() -> None:
    admission = Admission(LimitSettings(node_requests_a_minute=60))
    for _ in range(15):
        visit = admitted(admission, "10.0.0.1")
        admission.prove(visit, NODE, now=0.0)
        assert admission.ask(visit, certificates=0, now=0.0) is None
    visit = admitted(admission, "10.0.0.2")
    admission.prove(visit, NODE, now=0.0)
    assert admission.ask(visit, certificates=0, now=0.0) is not None
    other = admitted(admission, "10.0.0.2")
    admission.prove(other, OTHER, now=0.0)
    assert admission.ask(other, certificates=0, now=0.0) is None


def test_guessing_tokens_is_slower_than_asking() -> None:
    admission = Admission(LimitSettings(address_requests_a_minute=60))
    visit, guesses = admitted(admission, "2001:db8::1"), 0
    while admission.ask(visit, certificates=0, now=0.0) is None:
        admission.refused_to_join(visit, now=0.0)
        guesses += 1
    assert guesses == 3
    neighbour = admitted(admission, "2001:db8::2")
    assert admission.ask(neighbour, certificates=0, now=0.0) is not None
    assert admission.ask(visit, certificates=0, now=1.0) is None


def test_a_node_with_500_identities_that_live_a_minute_is_within_the_defaults() -> None:
    """Due at 45 to 55 % of their lives, each by itself: as bad as it can get."""
    admission = Admission(LimitSettings())
    visit = admitted(admission, "10.0.0.1")
    admission.prove(visit, NODE, now=0.0)
    assert admission.ask(visit, certificates=500, now=0.0) is None
    for round_number in range(1, 5):
        for number in range(500):
            now = round_number * 27.0 + number * 6.0 / 500
            assert admission.ask(visit, certificates=1, now=now) is None
