"""Whatever names, labels and errors say, a terminal is never told what to do: every view, every field."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from node_agent.cli.main import COMMANDS, main
from tests.fake_agent import ANSWERS, FakeAgent, fake_agent
from tests.pty_screen import PtyScreen

EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\r\n\u202e\u2028\x00\x7f"

_PROCESS = {"process": "agent", "pid": 1, "tasks": ["task"], "threads": ["thread"], "resident_bytes": 5}
_PROFILE = {"process": "agent", "running": False, "samples": 1, "idle": {"t": 1}, "stacks": {"a;b": 2}}
_EDGE = {
    "reporter": "source",
    "service": "s",
    "destination": "d",
    "opened": 1,
    "closed": 0,
    "sent_bytes": 1,
    "received_bytes": 1,
}
ANSWERED: dict[str, Any] = {
    **ANSWERS,
    "/status": {
        **ANSWERS["/status"],
        "warnings": ["w"],
        "trust": {"trust_domains": ["a", "b"]},
        "workers": [{"worker": 1, "pid": 2, "state": "ready", "uptime_s": 1, "connections": 1, "resident_bytes": 1}],
        "log_levels": {"level": "info", "modules": {"ringfence.x": "debug"}},
    },
    "/connections": [
        {
            **{
                key: key
                for key in ("id", "direction", "source", "original_destination", "service", "endpoint", "state")
            },
            "worker": 1,
            "age_s": 1,
            "sent_bytes": 1,
            "received_bytes": 1,
        }
    ],
    "/recent": [
        {
            **{key: key for key in ("time", "id", "direction", "source_workload", "service", "close_reason", "detail")},
            "duration_ms": 1.0,
        }
    ],
    "/certs": [{key: key for key in ("identity", "serial", "not_before", "not_after", "state", "last_error")}],
    "/log-level": {"level": "info", "modules": {"ringfence.x": "debug"}},
    "/debug/stacks": {"processes": [_PROCESS]},
    "/debug/memory": {"processes": [_PROCESS]},
    "/debug/profile": {"processes": [_PROFILE]},
    "/traffic": {"node": "n", "at_s": 1.0, "edges": [_EDGE], "services": []},
    "/policies": [
        {
            **{key: key for key in ("namespace", "name", "action", "scope", "problem", "kind", "file", "detail")},
            "rules": 1,
            "problems": ["p"],
            "warnings": ["w"],
            "principals": ["p"],
        }
    ],
}


def poisoned(value: Any) -> Any:
    """``value`` with the evil text behind each text in it, also in keys that are names."""
    if isinstance(value, str):
        return value + EVIL
    if isinstance(value, list):
        return [poisoned(each) for each in value]
    if isinstance(value, dict):
        names_are_data = value.keys() & {"ringfence.x", "Pod", "a;b", "t"}
        return {(key + EVIL if names_are_data else key): poisoned(each) for key, each in value.items()}
    return value


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FakeAgent]:
    with fake_agent(tmp_path) as server:
        server.answers = {path: poisoned(answer) for path, answer in ANSWERED.items()}
        clock = iter(range(1, 1000))
        traffic = server.answers["/traffic"]
        server.answers["/traffic"] = lambda: {**traffic, "at_s": float(next(clock))}
        yield server


VIEWS = [
    "status",
    "workloads",
    "services",
    "endpoints",
    "connections",
    "connections --ended",
    "certs",
    "policies",
    "log-level",
    "debug stacks",
    "debug memory",
    "debug profile --seconds 0.1 --idle",
    "top --once --interval 0.1",
]


@pytest.mark.parametrize("view", VIEWS)
def test_no_view_lets_a_control_character_through(
    agent: FakeAgent, capsys: pytest.CaptureFixture[str], view: str
) -> None:
    assert main([*view.split(), "--agent", str(agent.server_address)]) == 0
    shown = capsys.readouterr().out
    assert r"\x1b[2J" in shown
    assert all(line.isprintable() for line in shown.split("\n"))


@pytest.mark.parametrize("view", VIEWS)
def test_json_is_ascii_and_says_the_same(agent: FakeAgent, capsys: pytest.CaptureFixture[str], view: str) -> None:
    assert main([*view.split(), "--json", "--agent", str(agent.server_address)]) == 0
    shown = capsys.readouterr().out
    assert shown.isascii()
    assert all(line.isprintable() for line in shown.split("\n"))
    json.loads(shown)


def test_an_error_of_the_agent_is_one_harmless_line(agent: FakeAgent, capsys: pytest.CaptureFixture[str]) -> None:
    body = json.dumps({"error": f"no{EVIL}"}).encode()
    agent.raw = b"HTTP/1.1 400 No\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    assert main(["status", "--agent", str(agent.server_address)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.rstrip("\n").isprintable()


def test_a_watched_view_on_a_terminal_shows_them_escaped_too(agent: FakeAgent) -> None:
    program = "import sys; from node_agent.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "connections", "--watch", "--agent", str(agent.server_address)]
    with PtyScreen(command, columns=120, lines=10) as screen:
        screen.until(lambda s: "SOURCE" in s.lines[0] and r"\x1b" in s.text)
        assert b"\x1b]0;" not in screen.written
        assert b"owned\x07" not in screen.written
        screen.press("\x03")
        assert screen.wait() == 0


def test_a_terminal_that_is_not_utf_8_gets_what_it_can_show(agent: FakeAgent) -> None:
    agent.answers["/workloads"] = [{"name": "caf\u00e9-\u6f22", "namespace": "shop"}]
    program = "import sys; from node_agent.cli.main import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", program, "workloads", "--agent", str(agent.server_address)],
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        timeout=120,
        check=True,
    )
    assert b"caf\xe9-\\u6f22" in done.stdout


def test_this_table_knows_every_command_that_shows_what_the_agent_says() -> None:
    shown = {view.split()[0] for view in VIEWS}
    others = {"agent", "ca", "completion", "help", "dashboard", "bpf", "bundle", "explain", "policy"}
    assert set(COMMANDS) - others <= shown
