"""The parent's part when a tunnel was accepted by another worker than has the shared tunnel it belongs to.

It keeps which worker has which shared tunnel, by pod and label, and passes
connections from one worker to the other.  It never reads from one: what they
name was read by the worker that accepted them, and is a hint (tunnel/label.py).

Every connection goes to its worker, or back to the one that it came from; or it
is given up, by RST: then its source tries again later, and what was to move goes on in
its shared tunnel.  So nothing stays here.
"""

import os
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from node_agent.relay import reset_on_close
from node_agent.workers.tunnel_messages import (
    MOST_UNDER_WAY,
    PassedOn,
    PassOn,
    SharedTunnelEnded,
    Taken,
    TakeTunnel,
    TunnelShared,
)

PASSED: Final = "passed"
RETURNED: Final = "returned"
DROPPED: Final = "dropped"

FromWorker = TunnelShared | SharedTunnelEnded | PassOn | Taken


class _Channel(Protocol):
    @property
    def is_short(self) -> bool: ...

    def post(self, message: PassedOn) -> None: ...

    def give(self, message: TakeTunnel, descriptors: Sequence[int]) -> None: ...


class _Worker(Protocol):
    @property
    def number(self) -> int: ...

    @property
    def channel(self) -> _Channel: ...


class Passing:
    """Which worker has which shared tunnel; ``running`` are the workers by number."""

    def __init__(self, running: Mapping[int, _Worker]) -> None:
        self._running = running
        self._places: dict[tuple[str, str], int] = {}
        self._under_way: Counter[int] = Counter()  # to a worker that has not said so yet
        self.results: dict[str, int] = dict.fromkeys((PASSED, RETURNED, DROPPED), 0)

    def __len__(self) -> int:
        return len(self._places)

    def hear(self, worker: _Worker, message: FromWorker, descriptors: Sequence[int]) -> None:
        """Do what a worker says; takes the descriptors over."""
        match message:
            case TunnelShared():
                # The first one stays: a peer that knows the token is one of the two ends, and has no use for two.
                self._places.setdefault((message.uid, message.label), worker.number)
            case SharedTunnelEnded():
                if self._places.get((message.uid, message.label)) == worker.number:
                    del self._places[message.uid, message.label]
            case Taken():
                self._under_way[worker.number] -= 1
            case PassOn():
                (connection,) = descriptors
                self._pass_on(worker, message, connection)

    def _pass_on(self, sender: _Worker, message: PassOn, connection: int) -> None:
        target = self._running.get(self._places.get((message.uid, message.label), sender.number), sender)
        is_back = target.number == sender.number
        if sender.channel.is_short or (not is_back and self._under_way[target.number] >= MOST_UNDER_WAY):
            self.results[DROPPED] += 1
            give_up(connection)
            sender.channel.post(PassedOn())
            return
        take = TakeTunnel(uid=message.uid, peer=message.peer, accepted_at=message.accepted_at, is_back=is_back)
        target.channel.give(take, [connection])
        self.results[RETURNED if is_back else PASSED] += 1
        if not is_back:
            self._under_way[target.number] += 1
            sender.channel.post(PassedOn())

    def worker_ended(self, number: int) -> None:
        """Forget what was there."""
        self._places = {key: place for key, place in self._places.items() if place != number}
        del self._under_way[number]


def give_up(connection: int) -> None:
    """Close a connection by RST."""
    try:
        sock = socket.socket(fileno=connection)
    except OSError:  # no socket: it can not be
        os.close(connection)
        return
    reset_on_close(sock)
    sock.close()
