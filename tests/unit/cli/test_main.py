"""The command line: output and errors, against a fake agent on a unix socket."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from node_agent.cli.main import build_parser, main
from node_agent.cli.watch import watch
from tests.fake_agent import ANSWERS, FakeAgent, fake_agent

ROOT = Path(__file__).parents[3]


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FakeAgent]:
    with fake_agent(tmp_path) as server:
        yield server


def run(agent: FakeAgent, *arguments: str) -> int:
    return main([*arguments, "--agent", str(agent.server_address)])


@pytest.mark.parametrize("command", ["status", "workloads", "services", "endpoints", "connections", "certs"])
def test_json_is_exactly_what_the_agent_answers(
    agent: FakeAgent, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert run(agent, command, "--json") == 0
    assert json.loads(capsys.readouterr().out) == ANSWERS[f"/{command}"]


def test_status_says_what_is_wrong_and_escapes_what_others_wrote(
    agent: FakeAgent, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(agent, "status") == 0
    assert capsys.readouterr().out == (
        "node          node1  not ready\n"
        "              because CA is not reachable\n"
        "trust domain  cluster.local\n"
        "agent         version 0.1.0, pid 42, up 1h02m\n"
        "registry      /etc/ringfence/manifests, revision 7, digest 0123456789ab\n"
        "              3 Pod, 1 Service\n"
        "connections   2 open, 90 since start\n"
        "tunnels       2 busy, 4 idle\n"
        "CA            not reachable: refused\n"
        "problem       bad.yaml (document 2, line 4, at spec.ports[0]): \\x1b[2J?\n"
        "conflict      address 10.0.0.1 is claimed twice\n"
        "skipped       ConfigMap default/x\n"
    )


def test_tables_are_aligned(agent: FakeAgent, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(agent, "workloads") == 0
    assert capsys.readouterr().out == (
        "NAMESPACE  NAME  NODE          ADDRESSES         STATE    IDENTITY                                  ERROR\n"
        "default    web   node1 (here)  10.0.0.1,fd00::1  serving  spiffe://cluster.local/ns/default/sa/web  -\n"
    )
    assert run(agent, "services") == 0
    assert capsys.readouterr().out == (
        "NAMESPACE  NAME  ADDRESSES   PORTS       BALANCING      READY\n"
        "default    web   10.248.0.1  http:80,90  least-latency    2/3\n"
    )
    assert run(agent, "endpoints", "web") == 0
    assert capsys.readouterr().out == (
        "SERVICE         ADDRESS        WORKLOAD     READY  HEALTH                                             "
        "WEIGHT  OPEN  LATENCY  IDENTITY\n"
        "default/web:80  10.0.0.1:8080  default/web  yes    ejected (consecutive connect failures, 12 s left)  "
        "     1     5   0.4 ms  -\n"
    )
    assert run(agent, "connections") == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["ID", "DIRECTION"],
        ["a", "inbound"],
        ["b", "outbound"],
    ]
    assert run(agent, "certs") == 0
    assert capsys.readouterr().out == "none\n"


def test_a_service_is_asked_for_by_name(agent: FakeAgent, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(agent, "endpoints", "shop/we b&") == 0
    assert agent.requests == [("GET", "/endpoints?service=shop%2Fwe%20b%26", b"")]
    assert run(agent, "endpoints", "nope") == 1
    assert capsys.readouterr().err == "ringfence: no service default/nope\n"


def test_the_log_level_is_sent(agent: FakeAgent, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(agent, "log-level", "debug") == 0
    assert agent.requests == [("PUT", "/log-level", b'{"level": "debug"}')]
    assert capsys.readouterr().out == "log level is debug\n"


def test_watching_goes_on_until_interrupted(agent: FakeAgent, capsys: pytest.CaptureFixture[str]) -> None:
    args = build_parser("connections").parse_args(
        ["connections", "--watch", "--json", "--interval", "2", "--agent", str(agent.server_address)]
    )
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise KeyboardInterrupt

    assert watch(args, sleep=sleep) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [ANSWERS["/connections"]] * 3
    assert slept == [2.0] * 3


def test_a_missing_socket_says_which_and_what_to_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "agent.sock"
    assert main(["status", "--agent", str(path)]) == 1
    assert capsys.readouterr().err == (
        f"ringfence: there is no agent socket {path}: no agent runs on this machine, or it has another [agent] "
        "runtime_dir; start it (ringfence agent --config FILE), or name its socket: --agent PATH\n"
    )


def test_a_dead_socket_and_a_wrong_file_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert main(["status", "--agent", str(path)]) == 1
    assert "the agent that made it has ended without removing it" in capsys.readouterr().err
    assert main(["status", "--agent", str(tmp_path / ("x" * 200))]) == 1
    assert "path too long" in capsys.readouterr().err


@pytest.mark.parametrize("raw", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n[1"])
def test_an_agent_that_breaks_off_is_one_clear_error(
    agent: FakeAgent, capsys: pytest.CaptureFixture[str], raw: bytes
) -> None:
    agent.raw = raw
    assert run(agent, "status") == 1
    assert "broke off its answer" in capsys.readouterr().err


@pytest.mark.parametrize("raw", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"])
def test_somebody_else_on_the_socket_is_one_clear_error(
    agent: FakeAgent, capsys: pytest.CaptureFixture[str], raw: bytes
) -> None:
    agent.raw = raw
    assert run(agent, "status") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"ringfence: {agent.server_address!s} answers, but not as a Ringfence agent")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["status", "extra"], ["log-level", "loud"], ["connections", "--interval", "0"]],
    ids=" ".join,
)
def test_wrong_arguments_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "usage: ringfence" in capsys.readouterr().err


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    commands = ["agent", "status", "workloads", "services", "endpoints", "connections", "certs", "log-level"]
    for command in [*commands, "ca"]:
        with pytest.raises(SystemExit) as exit_:
            main([command, "--help"])
        assert exit_.value.code == 0
        assert f"usage: ringfence {command}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"    {command} " in shown for command in commands)


def test_a_wrong_configuration_is_one_line_without_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["agent", "--config", str(tmp_path / "agent.toml")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("ringfence: ")
    assert str(tmp_path / "agent.toml") in error
    assert error.count("\n") == 1


def test_a_question_loads_neither_trio_nor_cryptography(agent: FakeAgent) -> None:
    program = (
        "import sys; from node_agent.cli.main import main; code = main(sys.argv[1:]);"
        "print(sorted({'trio', 'cryptography', 'yaml', 'ssl'} & set(sys.modules))); sys.exit(code)"
    )
    command = [sys.executable, "-c", program, "status", "--json", "--agent", str(agent.server_address)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] in {"[]", "['ssl']"}  # http.client itself tries to import ssl


def test_a_closed_pipe_is_no_traceback(agent: FakeAgent) -> None:
    program = "import sys; from node_agent.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "workloads", "--agent", str(agent.server_address)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    error = process.stderr.read()
    process.stderr.close()
    assert (process.wait(30), error) == (1, b"")


@pytest.mark.parametrize("asked", [["endpoints", "web"], ["explain", "cart", "web:80"], ["status"]])
def test_options_are_understood_before_the_command_too(
    agent: FakeAgent, capsys: pytest.CaptureFixture[str], asked: list[str]
) -> None:
    path = str(agent.server_address)
    behind = main([*asked, "--agent", path, "--json"]), capsys.readouterr()
    for before in (["--agent", path, "--json"], ["--json", f"--agent={path}"]):
        assert (main([*before, *asked]), capsys.readouterr()) == behind


@pytest.mark.parametrize("arguments", [["--agent"], ["--agent", "/x"], ["--json"], ["--agent", "/x", "--nope"]])
def test_options_without_a_command_are_wrong_arguments(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_a_reason_that_nothing_ends_for_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for reason, remedy in (("policy-denied", "did you mean policy_denied?"), ("\x1b[31m", "there are: ok, ")):
        with pytest.raises(SystemExit) as ended:
            main(["connections", "--ended", "--reason", reason])
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert remedy in said
        assert "\x1b" not in said
