"""Draining: waits in which nothing would be lost end at once, the others go on."""

import trio
import trio.testing

from node_agent.drain import Drain


async def test_idle_waits_end_when_draining_begins_and_others_go_on() -> None:
    drain = Drain()
    seen = []

    async def idle() -> None:
        with drain.idle():
            await trio.sleep_forever()
        seen.append("idle ended")

    async def busy(end: trio.Event) -> None:
        with drain.idle():
            pass
        await end.wait()
        seen.append("busy ended")

    async with trio.open_nursery() as nursery:
        end = trio.Event()
        nursery.start_soon(idle)
        nursery.start_soon(busy, end)
        await trio.testing.wait_all_tasks_blocked()
        assert not drain.begun.is_set()
        drain.begin()
        await trio.testing.wait_all_tasks_blocked()
        assert seen == ["idle ended"]
        assert drain.begun.is_set()
        end.set()
    assert seen == ["idle ended", "busy ended"]


async def test_idle_wait_that_begins_while_draining_ends_at_its_first_step() -> None:
    drain = Drain()
    drain.begin()
    with drain.idle():
        await trio.sleep_forever()


async def test_what_was_heard_in_an_idle_wait_is_kept() -> None:
    drain = Drain()

    async def next_message() -> str | None:
        with drain.idle():
            await trio.lowlevel.checkpoint()
            return "message"
        return None

    assert await next_message() == "message"
    drain.begin()
    drain.begin()
    assert await next_message() is None


async def test_failure_in_an_idle_wait_comes_out() -> None:
    drain = Drain()
    try:
        with drain.idle():
            raise KeyError("x")
    except KeyError:
        pass
    else:
        raise AssertionError("it was swallowed")
    drain.begin()  # the scope of the block above is gone: nothing of it is cancelled
    await trio.lowlevel.checkpoint()
