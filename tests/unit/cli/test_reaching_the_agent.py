"""Each way in which the agent can not be reached is its own sentence, with its own remedy."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node_agent.cli.agent_address import AgentUnavailable, default_socket
from node_agent.cli.agent_socket import ask
from node_agent.cli.main import main
from tests.fake_agent import fake_agent

ROOT = Path(__file__).parents[3]
_NOBODY = 65534


def said(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["status", "--agent", str(path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("ringfence: ")
    assert error.count("\n") == 1
    return error


def test_no_socket(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "start it (ringfence agent --config FILE), or name its socket: --agent PATH" in said(tmp_path / "s", capsys)


def test_a_directory_names_the_socket_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"is a directory; name the socket in it: --agent {tmp_path}/agent.sock" in said(tmp_path, capsys)


def test_a_file_is_no_socket(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s").write_text("x")
    assert "is not a socket" in said(tmp_path / "s", capsys)


def test_an_agent_that_was_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    assert "has ended without removing it; see the end of its log" in said(tmp_path / "s", capsys)


@contextmanager
def silent(path: Path) -> Iterator[None]:
    """A socket that takes connections and never says a word."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(8)
        yield


def test_an_agent_that_is_stopped(tmp_path: Path) -> None:
    with silent(tmp_path / "s"), pytest.raises(AgentUnavailable, match=r"did not answer within 0 s; it may be stopped"):
        ask(str(tmp_path / "s"), "/status", timeout_s=0.05)


def test_somebody_who_is_not_root(tmp_path: Path) -> None:
    # All that it needs is imported first: "nobody" may not be let into the directory that the checkout is in.
    program = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); "
        "import node_agent.cli.status, node_agent.cli.unix_http, node_agent.cli.main as m; "
        f"os.setgroups([]); os.setgid({_NOBODY}); os.setuid({_NOBODY}); sys.exit(m.main(sys.argv[2:]))"
    )
    tmp_path.parent.chmod(0o755)
    with fake_agent(tmp_path) as server:
        os.chmod(str(server.server_address), 0o600)
        done = subprocess.run(
            [sys.executable, "-c", program, str(ROOT), "status", "--agent", str(server.server_address)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 1
    assert f"only the agent's user may, and you are user {_NOBODY}; run this as root (sudo)" in done.stderr


def test_root_in_a_container_is_told_where_to_run_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(AgentUnavailable, match="although this is root: .* run this where the agent runs"):
        ask(str(tmp_path / "s"), "/status")


def test_the_environment_may_name_the_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RINGFENCE_AGENT", raising=False)
    assert default_socket() == "/run/ringfence/agent.sock"
    with fake_agent(tmp_path) as server:
        monkeypatch.setenv("RINGFENCE_AGENT", str(server.server_address))
        assert main(["status"]) == 0


@pytest.mark.parametrize(("typed", "meant"), [("statsu", "status"), ("conections", "connections"), ("cert", "certs")])
def test_a_mistyped_command_is_told_what_was_probably_meant(
    typed: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([typed])
    assert exit_.value.code == 2
    assert f"there is no command {typed!r}; did you mean {meant}?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "shows"),
    [
        ([], "a live view of the services"),
        (["connections"], "usage: ringfence connections"),
        (["ca", "rotate"], "usage: ringfence ca rotate"),
        (["connecting"], "RINGFENCE_AGENT"),
        (["output"], "NO_COLOR"),
        (["exit-codes"], "130"),
    ],
    ids=str,
)
def test_help_knows_commands_and_topics(arguments: list[str], shows: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert main(["help", *arguments]) == 0
    except SystemExit as exit_:
        assert exit_.code == 0
    assert shows in capsys.readouterr().out
    with pytest.raises(SystemExit) as wrong:
        main(["help", "nonsense\x1b[2J"])
    assert wrong.value.code == 2
    assert "\x1b" not in capsys.readouterr().err
