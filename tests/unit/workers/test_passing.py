"""The parent's table of shared tunnels: every connection goes to one worker or is closed, and never stays."""

import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import pytest

from node_agent.model import PeerAddress
from node_agent.workers.passing import DROPPED, PASSED, RETURNED, Passing
from node_agent.workers.tunnel_messages import (
    MOST_UNDER_WAY,
    PassedOn,
    PassOn,
    SharedTunnelEnded,
    Taken,
    TakeTunnel,
    TunnelShared,
)

_PEER: Final = PeerAddress("10.0.0.2", 40000)


@dataclass
class _Channel:
    is_short: bool = False
    posted: list[object] = field(default_factory=list)
    given: list[tuple[TakeTunnel, list[int]]] = field(default_factory=list)

    def post(self, message: PassedOn) -> None:
        self.posted.append(message)

    def give(self, message: TakeTunnel, descriptors: Sequence[int]) -> None:
        self.given.append((message, list(descriptors)))


@dataclass
class _Worker:
    number: int
    channel: _Channel = field(default_factory=_Channel)


class _Parent:
    def __init__(self) -> None:
        self.workers = {number: _Worker(number) for number in (1, 2, 3)}
        self.passing = Passing(self.workers)
        self.clients: list[socket.socket] = []

    def shares(self, number: int, label: str = "a", uid: str = "web") -> None:
        self.passing.hear(self.workers[number], TunnelShared(uid=uid, label=label), [])

    def ends(self, number: int, label: str = "a", uid: str = "web") -> None:
        self.passing.hear(self.workers[number], SharedTunnelEnded(uid=uid, label=label), [])

    def passes_on(self, number: int, label: str = "a", uid: str = "web") -> int:
        """Returns the descriptor that goes with it."""
        ours, theirs = socket.socketpair()
        self.clients.append(theirs)
        connection = ours.detach()
        message = PassOn(uid=uid, label=label, peer=_PEER, accepted_at=7.5)
        self.passing.hear(self.workers[number], message, [connection])
        return connection

    def given(self, number: int) -> list[tuple[TakeTunnel, list[int]]]:
        return self.workers[number].channel.given

    def told(self, number: int) -> list[object]:
        return self.workers[number].channel.posted


@pytest.fixture
def parent() -> Iterator[_Parent]:
    made = _Parent()
    yield made
    for worker in made.workers.values():
        for _, descriptors in worker.channel.given:
            for each in descriptors:
                os.close(each)
    for client in made.clients:
        client.close()


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _took(connection: int, *, is_back: bool) -> tuple[TakeTunnel, list[int]]:
    return TakeTunnel(uid="web", peer=_PEER, accepted_at=7.5, is_back=is_back), [connection]


def test_a_connection_goes_to_the_worker_that_has_what_it_names(parent: _Parent) -> None:
    parent.shares(2)
    parent.shares(3, "b")
    connection = parent.passes_on(1)
    assert parent.given(2) == [_took(connection, is_back=False)]
    assert (parent.given(1), parent.given(3)) == ([], [])
    assert parent.told(1) == [PassedOn()]
    assert parent.passing.results == {PASSED: 1, RETURNED: 0, DROPPED: 0}


@pytest.mark.parametrize("why", ["unknown", "another pod's", "ended", "its own"])
def test_what_nobody_else_has_goes_back(parent: _Parent, why: str) -> None:
    if why == "another pod's":
        parent.shares(2, uid="db")
    elif why == "ended":
        parent.shares(2)
        parent.ends(2)
    elif why == "its own":
        parent.shares(1)
    connection = parent.passes_on(1)
    assert parent.given(1) == [_took(connection, is_back=True)]
    assert parent.told(1) == [], "that it is back says it"
    assert parent.passing.results == {PASSED: 0, RETURNED: 1, DROPPED: 0}


def test_a_worker_that_ended_has_nothing_any_more(parent: _Parent) -> None:
    parent.shares(2)
    parent.shares(3, "b")
    parent.passing.worker_ended(2)
    assert len(parent.passing) == 1
    assert parent.passes_on(1) in parent.given(1)[0][1]
    parent.passes_on(1, "b")
    assert len(parent.given(3)) == 1


def test_a_worker_that_is_not_running_gets_nothing(parent: _Parent) -> None:
    parent.shares(2)
    del parent.workers[2]
    connection = parent.passes_on(1)
    assert parent.given(1) == [_took(connection, is_back=True)]


def test_the_first_who_has_a_label_keeps_it_and_only_he_ends_it(parent: _Parent) -> None:
    parent.shares(2)
    parent.shares(3)
    parent.ends(3)
    parent.passes_on(1)
    assert len(parent.given(2)) == 1
    parent.ends(2)
    assert len(parent.passing) == 0


def test_what_is_under_way_to_a_worker_is_bounded_and_the_rest_closed(parent: _Parent) -> None:
    parent.shares(2)
    for _ in range(MOST_UNDER_WAY):
        parent.passes_on(1)
    late = parent.passes_on(3)
    assert not _is_open(late)
    assert parent.told(3) == [PassedOn()]
    with pytest.raises(ConnectionResetError):
        _recv_reset(parent.clients[-1])
    assert len(parent.given(2)) == MOST_UNDER_WAY
    assert parent.passing.results[DROPPED] == 1
    parent.passing.hear(parent.workers[2], Taken(), [])
    parent.passes_on(3)
    assert len(parent.given(2)) == MOST_UNDER_WAY + 1
    assert parent.passing.results[DROPPED] == 1


def _recv_reset(client: socket.socket) -> None:
    """A pair of unix sockets knows no RST, but an end."""
    if client.recv(1) == b"":
        raise ConnectionResetError


def test_the_bound_is_of_one_process_not_of_its_number(parent: _Parent) -> None:
    parent.shares(2)
    for _ in range(MOST_UNDER_WAY):
        parent.passes_on(1)
    parent.passing.worker_ended(2)
    parent.shares(2)
    parent.passes_on(1)
    assert len(parent.given(2)) == MOST_UNDER_WAY + 1


def test_who_has_no_descriptors_left_lets_go_of_the_connection(parent: _Parent) -> None:
    parent.shares(2)
    parent.workers[1].channel.is_short = True
    assert not _is_open(parent.passes_on(1))
    assert not _is_open(parent.passes_on(1, "unknown"))
    assert parent.told(1) == [PassedOn(), PassedOn()]
    assert parent.given(1) == parent.given(2) == []
    assert parent.passing.results == {PASSED: 0, RETURNED: 0, DROPPED: 2}
