"""``ringfence top`` in a real terminal, against a fake agent whose counters grow."""

import itertools
import json
import signal
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from node_agent.cli.main import main
from tests.fake_agent import FakeAgent, fake_agent
from tests.pty_screen import PtyScreen

_EVIL = "shop/\x1b[2Jevil\u202e\x07"
_SERVICES = 200


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FakeAgent]:
    clock = itertools.count(1)

    def traffic() -> Any:
        at_s = next(clock)
        names = [_EVIL, *(f"shop/service-{number:03d}" for number in range(1, _SERVICES))]
        return {
            "node": "node\x1b[31m1",
            "at_s": float(at_s),
            "edges": [
                {
                    "reporter": "source",
                    "service": name,
                    "destination": None,
                    "opened": at_s * number,
                    "closed": at_s * number - 1,
                    "sent_bytes": at_s * 2048 * number,
                    "received_bytes": 0,
                }
                for number, name in enumerate(names, 1)
            ],
            "failures": [
                {"direction": "outbound", "service": "shop/service-007", "close_reason": "policy_denied", "count": at_s}
            ],
            "services": [{"service": "shop/service-007", "endpoints": 2, "usable": 1, "latency_ms": 1.25}],
            "connect": [
                {"direction": "outbound", "le": "0.001", "count": at_s * 10},
                {"direction": "outbound", "le": "+Inf", "count": at_s * 10},
            ],
        }

    with fake_agent(tmp_path) as server:
        server.answers["/traffic"] = traffic
        yield server


def top(agent: FakeAgent, *arguments: str, **options: Any) -> PtyScreen:
    program = "import sys; from node_agent.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "top", "--agent", str(agent.server_address), "--interval", "0.5"]
    return PtyScreen([*command, *arguments], **options)


def test_the_view_sorts_filters_scrolls_pauses_resizes_and_leaves_the_terminal_as_it_was(agent: FakeAgent) -> None:
    with top(agent, columns=110, lines=24) as screen:
        before = termios.tcgetattr(screen.slave)
        screen.until(lambda s: "200 services" in s.lines[0] and "1-20 of 200" in s.lines[-1])
        assert screen.lines[0].startswith(
            r"node\x1b[31m1  200 services  20100 conn/s  200 open  1.00 errors/s  connect p50 0.5 ms p99 1.0 ms"
        )
        assert screen.lines[2].split() == [
            *("SERVICE", "DIR", "CONN/S\u25bc", "OPEN", "TO/S", "BACK/S", "ERR/S", "WHY", "CONNECT", "UP")
        ]
        assert screen.lines[3].split() == ["shop/service-199", "out", "200", "1", "-", "400.0", "KiB", "-", "-", "-"]

        screen.press("e")
        denied = screen.until(lambda s: "policy_denied" in s.lines[3] and s.lines[3].endswith("1/2") and s.lines[3])
        assert denied.split() == [
            *("shop/service-007", "out", "8.00", "1", "-", "16.0", "KiB", "1.00", "policy_denied", "1.2", "ms", "1/2")
        ]
        assert "red" in screen.colours()

        screen.press("n\x1b[6~")
        screen.until(lambda s: "21-40 of 200" in s.lines[-1])
        screen.press("\x1b[F")
        screen.until(lambda s: "181-200 of 200" in s.lines[-1] and "service-199" in s.lines[-2])

        screen.press("/evil\r")
        screen.until(
            lambda s: (
                "1 services" in s.lines[0] and "q: end" in s.lines[-1] and r"shop/\x1b[2Jevil\u202e\x07" in s.lines[3]
            )
        )
        screen.press("\x1bp")
        screen.until(lambda s: "200 services" in s.lines[0] and "PAUSED" in s.lines[1])

        screen.resize(60, 12)
        screen.until(lambda s: "1-8 of 200" in s.lines[-1])
        assert screen.lines[2].split() == ["SERVICE\u25b2", "DIR", "CONN/S", "OPEN", "ERR/S"]
        assert all(len(line) <= 60 for line in screen.lines)

        screen.press("?")
        screen.until(lambda s: "Ctrl-C" in s.text)
        screen.press("xq")
        assert screen.wait() == 0
        assert screen.written.endswith(b"\x1b[?25h") or b"\x1b[?1049l" in screen.written[-40:]
        assert termios.tcgetattr(screen.slave) == before


def test_an_agent_that_goes_away_is_said_and_waited_for(agent: FakeAgent) -> None:
    with top(agent) as screen:
        screen.until(lambda s: "200 services" in s.text)
        agent.raw = b""
        screen.until(lambda s: "trying again" in s.lines[1])
        assert "200 services" in screen.text
        agent.raw = None
        screen.until(lambda s: "trying again" not in s.text)
        screen.process.send_signal(signal.SIGTERM)
        assert screen.wait() == 128 + signal.SIGTERM
        assert b"\x1b[?1049l" in screen.written


def test_ctrl_c_ends_the_view(agent: FakeAgent) -> None:
    with top(agent, environ={"NO_COLOR": "1"}) as screen:
        screen.until(lambda s: "policy_denied" in s.text or "200 services" in s.text)
        assert screen.colours() == {"default"}
        screen.press("\x03")
        assert screen.wait() == 130
        assert b"\x1b[?1049l" in screen.written


def test_a_script_gets_one_table_or_json(agent: FakeAgent, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--agent", str(agent.server_address), "--once", "--interval", "0.1", "--sort", "errors"]
    assert main(["top", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + _SERVICES
    assert lines[1].split()[:3] == ["shop/service-007", "out", "8.00"]
    assert main(["top", *arguments, "--json", "--service", "007"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["node"], answer["interval_s"]) == ("node\x1b[31m1", 1.0)
    assert answer["services"] == [
        {
            "service": "shop/service-007",
            "direction": "out",
            "connections_per_s": 8.0,
            "open": 1,
            "to_bytes_per_s": 0.0,
            "back_bytes_per_s": 16384.0,
            "errors_per_s": 1.0,
            "errors_by_reason_per_s": {"policy_denied": 1.0},
            "connect_ms": 1.25,
            "endpoints": 2,
            "usable": 1,
        }
    ]


def test_on_a_terminal_that_only_prints_it_says_so(agent: FakeAgent) -> None:
    with top(agent, environ={"TERM": "dumb"}) as screen:
        assert screen.wait() == 1
        assert b"use --once" in screen.written


def test_without_a_terminal_it_says_what_to_do(agent: FakeAgent, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--agent", str(agent.server_address)]) == 1
    assert capsys.readouterr().err == "ringfence: top needs a terminal; in a script use --once or --json\n"
