"""A profile as programs that draw flame graphs want it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from node_agent.cli.flames import collapsed, speedscope
from node_agent.cli.main import main
from tests.fake_agent import FakeAgent, fake_agent

AGENT: dict[str, Any] = {
    "process": "agent",
    "running": False,
    "samples": 10,
    "idle": {"log": 9},
    "stacks": {"main;run (a.py:1);poll (b.py:2)": 2, "main;run (a.py:1)": 5},
}
WORKER: dict[str, Any] = {"process": "worker 1", "running": False, "samples": 10, "idle": {}, "stacks": {"main;x": 1}}


def test_collapsed_is_a_line_a_stack_the_most_seen_first() -> None:
    assert list(collapsed([AGENT, WORKER], with_idle=False)) == [
        "agent;main;run (a.py:1) 5",
        "agent;main;run (a.py:1);poll (b.py:2) 2",
        "worker 1;main;x 1",
    ]
    assert "agent;log;(idle) 9" in collapsed([AGENT], with_idle=True)


def test_speedscope_has_a_profile_for_each_process_and_names_each_frame_once() -> None:
    made: Any = speedscope([AGENT, WORKER], with_idle=False)
    frames = [frame["name"] for frame in made["shared"]["frames"]]
    assert len(frames) == len(set(frames))
    agent, worker = made["profiles"]
    assert [[frames[index] for index in sample] for sample in agent["samples"]] == [
        ["main", "run (a.py:1)"],
        ["main", "run (a.py:1)", "poll (b.py:2)"],
    ]
    assert (agent["weights"], agent["endValue"], worker["name"]) == ([5, 2], 7, "worker 1")


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FakeAgent]:
    with fake_agent(tmp_path) as server:
        yield server


def test_a_profile_is_waited_for_until_every_process_is_done(
    agent: FakeAgent, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter([[{**AGENT, "running": True}, WORKER], [AGENT, {**WORKER, "running": True}], [AGENT, WORKER]])
    agent.answers["/debug/profile"] = lambda: {"processes": next(answers)}
    assert main(["debug", "profile", "--seconds", "0.1", "--agent", str(agent.server_address)]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[0] == "agent;main;run (a.py:1) 5"
    assert said.err == "ringfence: 20 looks, 8 at something busy\n"
    assert agent.requests[0] == ("PUT", "/debug/profile", b'{"seconds": 0.1}')
    assert next(answers, None) is None


def test_a_profile_as_json_is_the_agents_answer(agent: FakeAgent, capsys: pytest.CaptureFixture[str]) -> None:
    agent.answers["/debug/profile"] = {"processes": [AGENT]}
    assert main(["debug", "profile", "--seconds", "0.1", "--json", "--agent", str(agent.server_address)]) == 0
    assert json.loads(capsys.readouterr().out) == {"processes": [AGENT]}


@pytest.mark.parametrize("seconds", ["0", "61", "x", "nan"])
def test_a_profile_of_no_time_or_too_much_is_refused(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["debug", "profile", "--seconds", seconds])
    assert exit_.value.code == 2
    assert "0.1 to 60" in capsys.readouterr().err
