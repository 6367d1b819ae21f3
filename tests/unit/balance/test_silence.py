"""An endpoint that accepts and says nothing: noticed when others answer, and never for being silent alone."""

import heapq
import itertools
from collections import Counter
from collections.abc import Callable
from random import Random

from ca.manifests.traffic import Traffic
from node_agent.balance import Balancer
from node_agent.model import Endpoint, EndpointAddress, ObjectName, ServicePort

SERVICE = ServicePort(service=ObjectName("shop", "web"), port=80)
ENDPOINTS = tuple(Endpoint(address=EndpointAddress(f"10.1.0.{n}", 80), workload=None) for n in range(3))


class _Connection:
    def __init__(self) -> None:
        self.down_bytes = 0


class _Service:
    """Clients, and endpoints that accept in ``connect_s`` and say something after ``answers_s`` (None: ``held``)."""

    def __init__(self, *, answers_s: Callable[[int, float], float | None], connect_s: tuple[float, ...]) -> None:
        self.balancer = Balancer(rng=Random(7))
        self.now = 0.0
        self.sent: list[tuple[float, int]] = []
        self.held: list[Callable[[], None]] = []
        self._answers_s = answers_s
        self._connect_s = connect_s
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()

    def run(self, *, seconds: float, per_s: float, gives_up_after_s: float = 1e9) -> None:
        end = self.now + seconds

        def arrive() -> None:
            self._at(self.now + 1 / per_s, arrive)
            self._connect(gives_up_after_s)

        heapq.heappush(self._events, (self.now, next(self._number), arrive))
        while self._events[0][0] < end:
            self.now, _, event = heapq.heappop(self._events)
            event()
        self._events = [each for each in self._events if each[2].__name__ != "arrive"]
        heapq.heapify(self._events)

    def counts(self, since: float) -> Counter[int]:
        return Counter(number for at, number in self.sent if at >= since)

    def health(self, number: int) -> str:
        return self.balancer.load_of(ENDPOINTS[number], self.now).health

    def _at(self, when: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._number), event))

    def _connect(self, gives_up_after_s: float) -> None:
        pick = self.balancer.pick(SERVICE, ENDPOINTS, self.now, traffic=Traffic())
        number = ENDPOINTS.index(pick.endpoint)
        self.sent.append((self.now, number))

        def up() -> None:
            connection = _Connection()
            pick.connected(self.now)
            pick.carries(connection, self.now)
            answers_s = self._answers_s(number, self.now)

            def answered() -> None:
                connection.down_bytes = 1
                pick.said_something()
                pick.release(self.now)

            if answers_s is None:
                self.held.append(answered)
                self._at(self.now + gives_up_after_s, lambda: pick.release(self.now))
            else:
                self._at(self.now + answers_s, answered)

        self._at(self.now + self._connect_s[number], up)


def test_the_nearest_one_that_hangs_is_left_within_a_second_and_hardly_tried_again() -> None:
    service = _Service(
        answers_s=lambda number, at: None if number == 0 and 2.0 <= at < 22.0 else 0.001,
        connect_s=(0.0005, 0.05, 0.05),
    )
    service.run(seconds=2.0, per_s=100)
    assert service.counts(0.0)[0] > 150, "it is the nearest one"
    service.run(seconds=20.0, per_s=100)
    late = service.counts(3.0)
    assert late[0] <= late.total() / 100, late
    assert service.health(0) == "silent"
    why = service.balancer.load_of(ENDPOINTS[0], service.now).why
    assert why is not None
    assert "others answer" in why


def test_its_answers_bring_it_back_with_its_share_at_once() -> None:
    is_hanging = True
    service = _Service(
        answers_s=lambda number, _: None if number == 0 and is_hanging else 0.001, connect_s=(0.001, 0.001, 0.001)
    )
    service.run(seconds=5.0, per_s=100)
    assert service.health(0) == "silent"
    is_hanging = False
    for answer in service.held:
        answer()
    assert service.health(0) == "healthy"
    began = service.now
    service.run(seconds=3.0, per_s=100)
    assert service.counts(began)[0] > 80, "of three hundred"


def test_one_that_is_silent_gets_a_connection_from_time_to_time_and_is_back_if_that_is_answered() -> None:
    # Those of the first second wait for ever, as subscribers do whom nobody has anything to tell.
    service = _Service(
        answers_s=lambda number, at: None if number == 0 and at < 1.0 else 0.001, connect_s=(0.001, 0.5, 0.5)
    )
    service.run(seconds=1.0, per_s=100)
    assert service.health(0) == "silent"
    service.run(seconds=10.0, per_s=100)
    assert service.health(0) == "healthy"


def test_clients_that_give_up_do_not_make_it_look_well() -> None:
    service = _Service(answers_s=lambda number, _: None if number == 0 else 0.001, connect_s=(0.001, 0.001, 0.001))
    service.run(seconds=20.0, per_s=100, gives_up_after_s=1.0)
    late = service.counts(3.0)
    assert late[0] <= late.total() * 0.03, late


def test_where_nobody_ever_answers_nobody_is_silent() -> None:
    service = _Service(answers_s=lambda *_: None, connect_s=(0.001, 0.001, 0.001))
    service.run(seconds=10.0, per_s=100)
    assert {service.health(number) for number in range(3)} == {"healthy"}
    assert min(service.counts(0.0).values()) > 250


def test_where_all_take_their_time_nobody_is_silent() -> None:
    service = _Service(answers_s=lambda *_: 5.0, connect_s=(0.001, 0.001, 0.001))
    for _ in range(40):
        service.run(seconds=1.0, per_s=20)
        assert {service.health(number) for number in range(3)} == {"healthy"}
    assert min(service.counts(0.0).values()) > 200


def test_some_connections_that_are_never_answered_cost_no_endpoint_its_share() -> None:
    rng = Random(3)
    service = _Service(answers_s=lambda *_: None if rng.random() < 0.7 else 0.005, connect_s=(0.001, 0.001, 0.001))
    service.run(seconds=60.0, per_s=50)
    counts = service.counts(10.0)
    assert min(counts.values()) > 0.25 * counts.total(), counts
