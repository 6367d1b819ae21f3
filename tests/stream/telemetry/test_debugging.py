"""``/debug/...``: the stacks and the profile of a process that serves, over its own socket."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import trio

from node_agent.telemetry.debugging.process import ProcessDebugging
from node_agent.telemetry.debugging.routes import debug_routes
from node_agent.telemetry.debugging.stacks import task_lines, thread_lines
from tests.stream.telemetry.test_admin import ask, ask_json, serving


class OtherProcesses:
    def __init__(self) -> None:
        self.profiled: list[float] = []

    def start_profile(self, seconds: float) -> None:
        self.profiled.append(seconds)

    def debugging(self, path: str) -> Iterable[Mapping[str, object]]:
        return [{"process": "worker 1", "asked": path}]


async def put(path: Path, body: bytes) -> tuple[int, Any]:
    status, answer = await ask(path, "PUT", "/debug/profile", body)
    return status, json.loads(answer)


async def test_a_profile_is_begun_in_every_process_and_fetched_when_it_is_over(tmp_path: Path) -> None:
    others, path = OtherProcesses(), tmp_path / "agent.sock"
    async with serving(debug_routes(ProcessDebugging(), others), path):
        assert (await ask_json(path, "/debug/profile"))["processes"][0]["running"] is False
        assert await put(path, b'{"seconds": 1}') == (200, {"seconds": 1})
        assert (await put(path, b'{"seconds": 1}'))[0] == 409
        assert others.profiled == [1]
        while (answer := await ask_json(path, "/debug/profile"))["processes"][0]["running"]:
            await trio.sleep(0.01)
        own, other = answer["processes"]
        assert (own["process"], own["seconds"], own["samples"] > 0) == ("agent", 1, True)
        assert other == {"process": "worker 1", "asked": "/debug/profile"}


async def test_what_is_no_profile_is_refused(tmp_path: Path) -> None:
    others, path = OtherProcesses(), tmp_path / "agent.sock"
    async with serving(debug_routes(ProcessDebugging(), others), path):
        for body in (b"", b"[]", b'{"seconds": "5"}', b'{"seconds": true}', b'{"seconds": NaN}', b'{"seconds": 1e9}'):
            status, answer = await put(path, body)
            assert status == 400
            assert "seconds" in answer["error"]
    assert others.profiled == []


async def a_task_that_waits_here(event: trio.Event) -> None:
    await event.wait()


async def test_stacks_show_the_tree_of_tasks_and_equal_siblings_once(tmp_path: Path) -> None:
    async with serving(debug_routes(ProcessDebugging(), OtherProcesses()), tmp_path / "agent.sock"):
        async with trio.open_nursery() as nursery:
            event = trio.Event()
            for _ in range(7):
                nursery.start_soon(a_task_that_waits_here, event)
            await trio.testing.wait_all_tasks_blocked()
            own, _ = (await ask_json(tmp_path / "agent.sock", "/debug/stacks"))["processes"]
            event.set()
    waiting = [line for line in own["tasks"] if "a_task_that_waits_here" in line]
    assert len(waiting) == 1
    assert waiting[0].strip().startswith("7 x tests.stream.telemetry.test_debugging.a_task_that_waits_here  ")
    assert "test_debugging.py:" in waiting[0]
    assert own["tasks"][0].startswith("<init>")
    assert "MainThread" in own["threads"]


async def test_very_many_tasks_are_not_all_looked_at() -> None:
    async with trio.open_nursery() as nursery:
        event = trio.Event()
        for _ in range(3_000):
            nursery.start_soon(a_task_that_waits_here, event)
        await trio.testing.wait_all_tasks_blocked()
        lines = task_lines()
        event.set()
    assert any(line.strip().startswith("and 1") and line.endswith("more") for line in lines)
    assert thread_lines()
