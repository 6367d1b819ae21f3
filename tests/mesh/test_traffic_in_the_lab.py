"""What clients feel when backends stop, refuse, are far away, are restarted, or a whole zone is cut off."""

import math
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from tests.distance import far_away
from tests.mesh_builder import Mesh, Pod, wait_for

pytestmark = pytest.mark.mesh

# Says who it is to whoever connects, and then ends the connection; a program of its own, so that it can be
# stopped.  At SIGTERM it serves whoever has connected already, as a server that is restarted should.
_WHOAMI: Final = """\
import signal, socket, sys

ending = []
signal.signal(signal.SIGTERM, lambda *_: ending.append(True))
listener = socket.create_server(("", 8080), backlog=512)
listener.settimeout(0.02)
while True:
    try:
        connection, _ = listener.accept()
    except BlockingIOError:
        listener.close()
        break
    except TimeoutError:
        if ending:
            listener.setblocking(False)
        continue
    with connection:
        connection.sendall(sys.argv[1].encode())
    if ending:
        listener.setblocking(False)
"""
_FAR_S: Final = 0.05
_ZONE_SHIFT_S: Final = 3.0
_PATIENCE_S: Final = 30.0
_SETTLED_S: Final = 2.0
_NOTICED_S: Final = 10.0


class _Asker:
    """Clients that connect one after the other at a steady rate, and wait for the answer."""

    def __init__(self, client: Pod, service: str, *, per_s: float) -> None:
        self._client = client
        self._service = service
        self._gap_s = 1.0 / per_s
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self.answers: list[tuple[float, str, float]] = []
        self.errors: list[str] = []

    def since(self, began: float) -> list[tuple[str, float]]:
        """Who answered those that began then or later, and how long it took."""
        with self._lock:
            return [(who, took_s) for at, who, took_s in self.answers if at >= began]

    def counts(self, began: float) -> Counter[str]:
        return Counter(who for who, _ in self.since(began))

    def run(self) -> None:
        due = time.monotonic()
        while not self._ending.wait(max(0.0, due - time.monotonic())):
            due += self._gap_s
            thread = threading.Thread(target=self._ask)
            self._threads.append(thread)
            thread.start()

    def end(self) -> None:
        self._ending.set()

    def join(self) -> None:
        for each in self._threads:
            each.join()

    def _ask(self) -> None:
        began = time.monotonic()
        try:
            with self._client.connect(self._service, 80, timeout_s=_PATIENCE_S) as connection:
                who = connection.recv(100).decode()
        except OSError as error:
            who = ""
            problem = f"{type(error).__name__}: {error}"
        else:
            problem = "no answer" if not who else ""
        with self._lock:
            if problem:
                self.errors.append(problem)
            else:
                self.answers.append((began, who, time.monotonic() - began))


@contextmanager
def _asking(client: Pod, service: str, *, per_s: float) -> Iterator[_Asker]:
    """Clients for the length of the block; after it each has had its answer, or its error."""
    asker = _Asker(client, service, per_s=per_s)
    thread = threading.Thread(target=asker.run)
    thread.start()
    try:
        yield asker
    finally:
        asker.end()
        thread.join()
        asker.join()


def _start(pod: Pod) -> int:
    """Serve in the pod by a program; returns its pid."""
    started = pod.spawn("python3", "-c", _WHOAMI, pod.name)
    pod.wait_until_open(8080)
    return started.pid


@contextmanager
def _paused(pid: int) -> Iterator[Callable[[], None]]:
    """A program that is stopped, until the function is called or the block ends."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield lambda: os.kill(pid, signal.SIGCONT)
    finally:
        os.kill(pid, signal.SIGCONT)


def _apply(mesh: Mesh, spec: str) -> None:
    mesh.apply(
        "apiVersion: ringfence.io/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: web}\n"
        f"spec:\n  targetRef: {{kind: Service, name: web}}\n  {spec}\n"
    )


def test_clients_notice_nothing_of_backends_that_stop_refuse_and_are_far_away(mesh: Mesh) -> None:
    client = mesh.pod("client", node=1)
    # Nothing listens in the last one.
    paused, far, _ = (mesh.pod(name, node=2, labels={"app": "web"}) for name in ("paused", "far", "refusing"))
    service, _ = mesh.service("web", app="web", port=80, target_port=8080)
    pid = _start(paused)
    _start(far)
    with far_away(mesh, far, delay_s=_FAR_S), _asking(client, service, per_s=50) as asker:
        wait_for("answers", lambda: len(asker.since(0.0)) >= 50)
        with _paused(pid) as resume:
            stopped = time.monotonic()
            wait_for("it to be noticed", lambda: _health(mesh, paused) == "silent", deadline_s=_NOTICED_S)
            wait_for("two seconds", lambda: time.monotonic() > stopped + _SETTLED_S)
            wait_for("more answers", lambda: len(asker.since(stopped + _SETTLED_S)) >= 200)
            resumed = time.monotonic()
            resume()
            wait_for("its share of the one that was paused", lambda: asker.counts(resumed)["paused"] >= 50)
        assert asker.counts(resumed)["paused"] > asker.counts(resumed)["far"]
    assert asker.errors == [], "no client may notice"

    while_paused = [(who, took_s) for at, who, took_s in asker.answers if stopped + _SETTLED_S <= at < resumed]
    shares = Counter(who for who, _ in while_paused)
    assert shares["paused"] <= shares.total() // 100, shares
    healthy = _p99([took_s for who, took_s in while_paused if who == "far"])
    assert _p99([took_s for _, took_s in while_paused]) <= 1.1 * healthy, shares
    assert {_health(mesh, pod) for pod in (paused, far)} == {"healthy"}
    (ejected,) = (row for row in mesh.ringfence(1, "endpoints", "web") if row["health"] != "healthy")
    assert (ejected["workload"], ejected["why"]) == ("default/refusing", "consecutive connect failures")


def _health(mesh: Mesh, pod: Pod) -> str:
    (row,) = (row for row in mesh.ringfence(1, "endpoints", "web") if row["address"] == f"{pod.ipv4}:8080")
    return str(row["health"])


def _p99(values: list[float]) -> float:
    return sorted(values)[math.ceil(len(values) * 0.99) - 1]


def test_a_backend_that_is_restarted_under_load_loses_nothing_that_it_had_not_accepted(mesh: Mesh) -> None:
    client = mesh.pod("client", node=1)
    pods = [mesh.pod(f"web-{number}", node=2, labels={"app": "web"}) for number in range(2)]
    service, _ = mesh.service("web", app="web", port=80, target_port=8080)
    pids = [_start(pod) for pod in pods]
    _apply(mesh, "outlierDetection: {baseEjectionTime: 1s, maxEjectionTime: 1s}")
    with _asking(client, service, per_s=200) as asker:
        for _ in range(3):
            answered = len(asker.since(0.0))
            wait_for("traffic", lambda: len(asker.since(0.0)) > answered + 100)  # noqa: B023
            os.kill(pids[0], signal.SIGTERM)
            wait_for("it to be gone", lambda: not _is_open(pods[0]))
            gone = time.monotonic()
            wait_for("the other one's answers", lambda: len(asker.since(gone)) > 100)  # noqa: B023
            pids[0] = _start(pods[0])
            started = time.monotonic()
            wait_for("its answers", lambda: "web-0" in [who for who, _ in asker.since(started)])  # noqa: B023
    assert asker.errors == []


def _is_open(pod: Pod) -> bool:
    try:
        pod.wait_until_open(8080, deadline_s=0.0)
    except AssertionError:
        return False
    return True


def test_when_a_zone_is_cut_off_its_traffic_is_on_the_other_one(mesh: Mesh) -> None:
    client = mesh.pod("client", node=1)
    here = [mesh.pod(f"here-{number}", node=1, labels={"app": "web"}) for number in range(2)]
    there = [mesh.pod(f"there-{number}", node=2, labels={"app": "web"}) for number in range(2)]
    service, _ = mesh.service("web", app="web", port=80, target_port=8080)
    for pod in here + there:
        _start(pod)
    _apply(mesh, "timeouts: {connect: 1s}")
    with _asking(client, service, per_s=50) as asker:
        wait_for("traffic to both zones", lambda: len({who.split("-")[0] for who, _ in asker.since(0.0)}) == 2)
        with mesh.cut(1, 2):
            shifted = time.monotonic() + _ZONE_SHIFT_S
            wait_for("answers", lambda: len(asker.since(shifted)) >= 100)
            answered = asker.since(shifted)
            slow = [took_s for _, took_s in answered if took_s > 0.9]
            assert {who.split("-")[0] for who, _ in answered} == {"here"}
            assert len(slow) <= len(answered) // 20, "nearly nobody tries the other zone first"
    assert asker.errors == []
