"""A process looks at its own threads: what is busy is seen, what waits is not, and it ends by itself."""

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from node_agent.telemetry.debugging import profiler
from node_agent.telemetry.debugging.frames import place, short_path
from node_agent.telemetry.debugging.process import ProcessDebugging
from node_agent.telemetry.debugging.profiler import AlreadyRunning, Profiler


def spin_visibly(until: threading.Event) -> None:
    while not until.is_set():
        sum(range(200))


def wait_invisibly(until: threading.Event) -> None:
    until.wait()


@pytest.fixture
def threads() -> Iterator[None]:
    over = threading.Event()
    started = [
        threading.Thread(target=target, args=(over,), name=name)
        for name, target in (("busy", spin_visibly), ("idle", wait_invisibly))
    ]
    for thread in started:
        thread.start()
    yield
    over.set()
    for thread in started:
        thread.join()


def test_a_busy_thread_is_seen_where_it_is_busy_and_a_waiting_one_is_counted_apart(threads: None) -> None:
    found = Profiler()
    before = sys.getswitchinterval()
    found.start(0.5)
    with pytest.raises(AlreadyRunning, match="wait until it is over"):
        found.start(0.5)
    assert found.describe()["running"] is True
    found.wait()
    assert sys.getswitchinterval() == before

    profile = found.describe()
    assert (profile["running"], profile["seconds"]) == (False, 0.5)
    stacks, idle = profile["stacks"], profile["idle"]
    assert isinstance(stacks, dict)
    assert isinstance(idle, dict)
    busy = {stack: count for stack, count in stacks.items() if stack.startswith("busy;")}
    assert busy
    assert all("spin_visibly (tests/unit/telemetry/debugging/test_profiler.py:" in stack for stack in busy)
    assert not [stack for stack in stacks if stack.startswith("idle;") or "profiler" in stack.split(";")[0]]
    assert idle["idle"] >= 1
    assert sum(stacks.values()) <= profile["samples"] * threading.active_count()  # type: ignore[operator]


def test_a_profile_forgets_the_one_before_it(threads: None) -> None:
    found = Profiler()
    for _ in range(2):
        found.start(0.1)
        found.wait()
    samples = found.describe()["samples"]
    assert isinstance(samples, int)
    assert 1 <= samples <= 11


@pytest.mark.parametrize("seconds", [0.0, 0.05, 61.0, -1.0, float("nan"), float("inf")])
def test_a_profile_is_neither_shorter_nor_longer_than_is_bearable(seconds: float) -> None:
    with pytest.raises(ValueError, match="from 0.1 to 60"):
        Profiler().start(seconds)


def test_the_memory_of_a_profile_is_bounded(threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "_MAX_STACKS", 0)
    found = Profiler()
    found.start(0.3)
    found.wait()
    stacks = found.describe()["stacks"]
    assert isinstance(stacks, dict)
    assert list(stacks) == ["(other stacks)"]


def test_nothing_is_imported_before_somebody_asks() -> None:
    program = (
        "import sys, node_agent.cli.main as m; m.build_parser('agent'); import node_agent.agent;"
        "from node_agent.telemetry.debugging.process import ProcessDebugging as P; assert not P().profile()['running'];"
        "print(*(name for name in sys.modules if name in {'rich', 'argcomplete', 'http.client', 'tarfile'}"
        " or name.startswith('node_agent.telemetry.debugging.')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert set(done.stdout.split()) == {f"node_agent.telemetry.debugging.{name}" for name in ("process", "routes")}


def test_memory_is_told_in_bytes() -> None:
    told = ProcessDebugging().memory()
    resident = told["resident_bytes"]
    assert isinstance(resident, int)
    assert resident > 4 * 1024 * 1024
    assert told["threads"] == threading.active_count()


def test_places_are_told_from_their_package_on() -> None:
    assert short_path(threading.__file__) == "threading.py"
    assert short_path(pytest.__file__) == "pytest/__init__.py"
    assert short_path("/elsewhere/x.py") == "/elsewhere/x.py"
    assert place(spin_visibly.__code__, 7) == "spin_visibly (tests/unit/telemetry/debugging/test_profiler.py:7)"
