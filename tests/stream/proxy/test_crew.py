"""One task serves many connections, and what ends one of them ends no other."""

import gc
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from node_agent.proxy import crew as crew_module
from node_agent.proxy.crew import Crew


class _Stories:
    """Stories that note what became of them, in which task, and how to cut each."""

    def __init__(self) -> None:
        self.ended: dict[str, str] = {}
        self.tasks: dict[str, trio.lowlevel.Task] = {}
        self.cut: dict[str, Callable[[], None]] = {}
        self.may_end = trio.Event()

    async def waits(self, name: str, scope: trio.CancelScope) -> None:
        self._begin(name, scope)
        try:
            await self.may_end.wait()
            self.ended[name] = "ok"
        except trio.Cancelled:
            self.ended[name] = "cut"
            raise

    async def is_quick(self, name: str, scope: trio.CancelScope) -> None:
        self._begin(name, scope)
        await trio.lowlevel.checkpoint()
        self.ended[name] = "ok"

    async def never_looks_up(self, name: str, scope: trio.CancelScope) -> None:
        """Is cut, and over before it would notice."""
        self._begin(name, scope)
        scope.cancel()
        self.ended[name] = "ok"

    def _begin(self, name: str, scope: trio.CancelScope) -> None:
        assert not scope.cancel_called, "of another connection"
        self.tasks[name] = trio.lowlevel.current_task()
        self.cut[name] = scope.cancel


@asynccontextmanager
async def _crew() -> AsyncIterator[tuple[Crew, _Stories]]:
    async with trio.open_nursery() as nursery:
        crew = Crew(nursery)
        yield crew, _Stories()
        nursery.cancel_scope.cancel()


async def test_connections_one_after_the_other_have_the_same_task() -> None:
    async with _crew() as (crew, stories):
        for name in "abc":
            crew.serve(partial(stories.is_quick, name))
            await wait_all_tasks_blocked()
        assert stories.ended == dict.fromkeys("abc", "ok")
        assert len(set(stories.tasks.values())) == 1


async def test_connections_at_the_same_time_have_a_task_each() -> None:
    async with _crew() as (crew, stories):
        for name in "abc":
            crew.serve(partial(stories.waits, name))
        await wait_all_tasks_blocked()
        assert len(set(stories.tasks.values())) == 3
        stories.may_end.set()
        await wait_all_tasks_blocked()
        assert stories.ended == dict.fromkeys("abc", "ok")


async def test_who_is_cut_ends_alone_and_its_task_serves_others() -> None:
    async with _crew() as (crew, stories):
        for name in "ab":
            crew.serve(partial(stories.waits, name))
        await wait_all_tasks_blocked()
        stories.cut["a"]()
        await wait_all_tasks_blocked()
        assert stories.ended == {"a": "cut"}
        crew.serve(partial(stories.waits, "c"))
        await wait_all_tasks_blocked()
        assert stories.tasks["c"] is stories.tasks["a"]
        stories.may_end.set()
        await wait_all_tasks_blocked()
        assert stories.ended == {"a": "cut", "b": "ok", "c": "ok"}


async def test_a_cut_that_nobody_noticed_does_not_hit_the_next() -> None:
    async with _crew() as (crew, stories):
        crew.serve(partial(stories.never_looks_up, "a"))
        await wait_all_tasks_blocked()
        crew.serve(partial(stories.is_quick, "b"))
        await wait_all_tasks_blocked()
        assert stories.ended == {"a": "ok", "b": "ok"}
        assert stories.tasks["a"] is stories.tasks["b"]


async def test_who_comes_in_the_turn_of_a_cut_is_served() -> None:
    async with _crew() as (crew, stories):
        crew.serve(partial(stories.waits, "a"))
        await wait_all_tasks_blocked()
        stories.cut["a"]()
        for name in "bc":
            crew.serve(partial(stories.is_quick, name))
        await wait_all_tasks_blocked()
        assert stories.ended == {"a": "cut", "b": "ok", "c": "ok"}


async def test_the_end_of_the_nursery_ends_those_that_serve_and_those_that_rest() -> None:
    async with trio.open_nursery() as nursery:
        crew, stories = Crew(nursery), _Stories()
        crew.serve(partial(stories.is_quick, "a"))
        crew.serve(partial(stories.waits, "b"))
        await wait_all_tasks_blocked()
        crew.serve(partial(stories.waits, "c"))  # begins in a task that is cancelled before its turn
        nursery.cancel_scope.cancel()
    assert stories.ended == {"a": "ok", "b": "cut", "c": "cut"}


async def test_a_crew_that_is_dismissed_finishes_what_it_serves() -> None:
    stories = _Stories()
    async with trio.open_nursery() as nursery:
        crew = Crew(nursery)
        for name in "ab":
            crew.serve(partial(stories.is_quick, name))
        crew.serve(partial(stories.waits, "c"))
        await wait_all_tasks_blocked()
        crew.dismiss()
        await wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        crew.serve(partial(stories.is_quick, "d"))  # whoever was under way
        stories.may_end.set()
    assert stories.ended == dict.fromkeys("abcd", "ok")


async def test_more_than_may_rest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew_module, "_MOST_RESTING", 3)
    async with trio.open_nursery() as nursery:
        first, second, stories = Crew(nursery), Crew(nursery), _Stories()
        for number in range(4):
            first.serve(partial(stories.is_quick, f"first {number}"))
            second.serve(partial(stories.is_quick, f"second {number}"))
        await wait_all_tasks_blocked()
        assert len(stories.ended) == 8
        assert len(nursery.child_tasks) == 3, "of both together"
        first.dismiss()
        second.dismiss()
    assert not Crew._resting_count


async def test_a_fault_in_a_story_ends_the_nursery() -> None:
    async def broken(_scope: trio.CancelScope) -> None:
        await trio.lowlevel.checkpoint()
        raise KeyError("mine")

    async def serve() -> None:
        async with trio.open_nursery() as nursery:
            crew, stories = Crew(nursery), _Stories()
            crew.serve(partial(stories.is_quick, "a"))
            await wait_all_tasks_blocked()
            crew.serve(broken)

    with pytest.raises(ExceptionGroup) as caught:
        await serve()
    assert caught.group_contains(KeyError)
    assert not Crew._resting_count


@pytest.mark.parametrize("is_cut", [False, True])
async def test_who_rests_holds_nothing_of_the_last_connection(is_cut: bool) -> None:
    class Socket: ...

    async def story(sock: Socket, scope: trio.CancelScope) -> None:
        if is_cut:
            scope.cancel()
        await trio.lowlevel.checkpoint()

    async with _crew() as (crew, _):
        sock = Socket()
        seen = weakref.ref(sock)
        crew.serve(partial(story, sock))
        del sock
        await wait_all_tasks_blocked()
        gc.collect()
        assert seen() is None


async def test_cuts_at_any_time_hit_only_whom_they_are_meant_for(autojump_clock: MockClock) -> None:
    """Sixty connections of different lengths, a third of which are cut, in few tasks."""
    ended: dict[int, str] = {}

    async def story(number: int, scope: trio.CancelScope) -> None:
        if number % 3 == 0:
            nursery.start_soon(cut_after, number % 7 + 0.5, number, scope)
        try:
            await trio.sleep(number % 5 + 1)
            ended[number] = "ok"
        except trio.Cancelled:
            ended[number] = "cut"
            raise

    async def cut_after(seconds: float, number: int, scope: trio.CancelScope) -> None:
        await trio.sleep(seconds)
        if number not in ended:
            scope.cancel()

    async with trio.open_nursery() as nursery, trio.open_nursery() as tasks:
        crew = Crew(tasks)
        for number in range(60):
            crew.serve(partial(story, number))
            await trio.sleep(0.3)
        crew.dismiss()
    expected = {
        number: "cut" if number % 3 == 0 and number % 7 + 0.5 < number % 5 + 1 else "ok" for number in range(60)
    }
    assert ended == expected
