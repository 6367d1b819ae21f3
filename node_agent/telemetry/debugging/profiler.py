"""Where a process spends its time: its own threads, sampled a hundred times a second.

A thread of our own looks at the stacks of all others (``sys._current_frames``),
as py-spy does from outside, where that is not allowed to be installed or to attach.

A sample is *idle* when the thread has used no processor time since the last one,
or waits at one of the places where our threads do: those are counted apart.

What it costs while it runs: under two percent of one processor, measured at 100
samples a second.  It can only look when it has the interpreter's lock, which a
busy thread gives away every 5 ms or when it calls the kernel.  So that the
places that call the kernel do not get more than their share, the lock is asked
for more urgently while a profile runs (``sys.setswitchinterval``).
"""

import sys
import threading
import time
from collections import Counter
from types import CodeType, FrameType
from typing import Final

from node_agent.telemetry.debugging.frames import of_all_threads, place, short_path

MOST_S: Final = 60.0
LEAST_S: Final = 0.1
_INTERVAL_S: Final = 0.01
_SWITCH_S: Final = 0.0002
_MAX_STACKS: Final = 2_000  # of two kilobytes each, when they are told
_MAX_DEPTH: Final = 128
_IDLE_SHARE: Final = 0.02  # of the time since the last sample
_IDLE_PLACES: Final = frozenset(
    {
        ("trio/_core/_io_epoll.py", "get_events"),
        ("trio/_core/_thread_cache.py", "_work"),
        ("threading.py", "wait"),
    }
)
_OTHER: Final = "(other stacks)"

_Stack = tuple[tuple[CodeType, int | None], ...]  # innermost first


class AlreadyRunning(RuntimeError):
    """One profile at a time."""


class Profiler:
    """Profiles this process; the last profile stays until the next begins."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._seconds = 0.0
        self._samples = 0
        self._busy: Counter[tuple[str, _Stack]] = Counter()
        self._idle: Counter[str] = Counter()
        self._lost = 0

    @property
    def is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self, seconds: float) -> None:
        """Begin a profile of ``seconds``; what was there is forgotten.

        Raises:
            AlreadyRunning: another one is not over.
            ValueError: ``seconds`` is not from 0.1 to 60.
        """
        if not LEAST_S <= seconds <= MOST_S:
            raise ValueError(f"seconds must be a number from {LEAST_S:g} to {MOST_S:g}")
        if self.is_running:
            raise AlreadyRunning("a profile is being taken already; wait until it is over")
        self._seconds, self._samples, self._lost = seconds, 0, 0
        self._busy.clear()
        self._idle.clear()
        self._thread = threading.Thread(target=self._run, args=(seconds,), name="profiler", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when the profile is over."""
        if self._thread is not None:
            self._thread.join()

    def describe(self) -> dict[str, object]:
        """The profile so far: how often each stack was seen busy, outermost function first, ``;`` between."""
        stacks: Counter[str] = Counter()
        for (thread, stack), count in list(self._busy.items()):
            stacks[";".join((thread, *(place(code, line) for code, line in reversed(stack))))] += count
        if self._lost:
            stacks[_OTHER] += self._lost
        return {
            "running": self.is_running,
            "seconds": self._seconds,
            "samples": self._samples,
            "idle": dict(self._idle),
            "stacks": dict(stacks),
        }

    def _run(self, seconds: float) -> None:
        own = threading.get_ident()
        used_before: dict[int, float] = {}
        switch_s = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_S)
        try:
            now = before = time.monotonic()
            end = now + seconds
            while now < end:
                time.sleep(_INTERVAL_S)
                now = time.monotonic()
                self._look(own, used_before, now - before)
                before = now
        finally:
            sys.setswitchinterval(switch_s)

    def _look(self, own: int, used_before: dict[int, float], since_s: float) -> None:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        self._samples += 1
        for ident, frame in of_all_threads().items():
            if ident == own:
                continue
            thread = names.get(ident, "a thread")
            # Safe: the thread has a frame, and can not end while this one has the interpreter's lock.
            used_s = time.clock_gettime(time.pthread_getcpuclockid(ident))
            was_idle = used_s - used_before.get(ident, 0.0) < _IDLE_SHARE * since_s
            used_before[ident] = used_s
            if was_idle or (short_path(frame.f_code.co_filename), frame.f_code.co_name) in _IDLE_PLACES:
                self._idle[thread] += 1
                continue
            key = thread, _stack(frame)
            if key in self._busy or len(self._busy) < _MAX_STACKS:
                self._busy[key] += 1
            else:
                self._lost += 1


def _stack(frame: FrameType | None) -> _Stack:
    found: list[tuple[CodeType, int | None]] = []
    while frame is not None and len(found) < _MAX_DEPTH:
        found.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return tuple(found)
