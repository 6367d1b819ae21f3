"""What every test gets: ``async def`` tests under trio, and one hypothesis profile.

A test that asks for ``autojump_clock`` runs in virtual time: whenever all its tasks
wait, the clock jumps to the next timeout, so an hour's idleness takes no time.  (It
knows nothing of sockets and threads: use it with memory streams only.)

There are no async fixtures: a test opens the nursery that it needs.  pytest-trio
would bring them, but was last released in 2022.
"""

import functools
import inspect
import os
from typing import Final

import hypothesis
import pytest
import trio
import trio.testing

_DEADLINE_S: Final = 60.0
_VIRTUAL_DEADLINE_S: Final = 7 * 24 * 3600.0  # reached at once when every task waits for ever

# Timing on a shared 2-core machine says nothing about an example: no deadline, and "too slow" is no error.
# CI draws the same examples every time: a find belongs in a session at work, not in an unrelated landing.
hypothesis.settings.register_profile(
    "ringfence",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize="CI" in os.environ,
    print_blob=True,
)
hypothesis.settings.load_profile("ringfence")


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    """The virtual clock that the test runs on; ``trio.current_time()`` reads it."""
    return trio.testing.MockClock(autojump_threshold=0)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an ``async def`` test to its end or to its deadline; leave the others to pytest."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    # Also when another fixture asked for it.
    clock = next((value for value in pyfuncitem.funcargs.values() if isinstance(value, trio.testing.MockClock)), None)
    mark = pyfuncitem.get_closest_marker("deadline_s")
    deadline_s = float(mark.args[0]) if mark else _DEADLINE_S if clock is None else _VIRTUAL_DEADLINE_S

    async def run() -> None:
        with trio.fail_after(deadline_s):
            await functools.partial(pyfuncitem.obj, **arguments)()

    trio.run(run, clock=clock, strict_exception_groups=True)
    return True
