"""A passphrase that is typed: only at a terminal, never shown, twice when it is new."""

import os
import pty
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.authority_process import RINGFENCE

TYPED = "a passphrase that is typed"


def at_a_terminal(arguments: list[str], *answers: str) -> tuple[int, str]:
    """Run ringfence at a terminal of its own, typing ``answers`` when it asks; returns exit code and the screen."""
    pid, terminal = pty.fork()
    if pid == 0:  # pragma: no cover - another process
        os.execvp(RINGFENCE[0], [*RINGFENCE, *arguments])
    screen, pending = b"", list(answers)
    while True:
        try:
            data = os.read(terminal, 4096)
        except OSError:  # EIO: the other side is closed
            break
        if not data:
            break
        screen += data
        if pending and screen.endswith(b": "):  # what is typed before it asks is thrown away
            os.write(terminal, pending.pop(0).encode() + b"\n")
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), screen.decode()


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "ca.toml").write_text(f'[ca]\nstate_dir = "{tmp_path}/state"\n')
    return str(tmp_path / "ca.toml")


def test_a_new_passphrase_is_typed_twice_and_never_shown(config: str) -> None:
    code, screen = at_a_terminal(["ca", "init", "--config", config], TYPED, TYPED)
    assert code == 0, screen
    assert TYPED not in screen
    assert screen.count("the passphrase of the signing keys") == 2
    code, screen = at_a_terminal(["ca", "rotate", "intermediate", "--config", config], TYPED)
    assert code == 0, screen
    code, screen = at_a_terminal(["ca", "rotate", "intermediate", "--force", "--config", config], TYPED + "?")
    assert code == 1
    assert "wrong passphrase" in screen


def test_two_that_differ_or_one_that_is_short_make_nothing(config: str, tmp_path: Path) -> None:
    code, screen = at_a_terminal(["ca", "init", "--config", config], TYPED, TYPED + "!")
    assert code == 1
    assert "not the same; nothing was made" in screen
    code, screen = at_a_terminal(["ca", "init", "--config", config], "short", "short")
    assert code == 1
    assert "16 to 1024 bytes" in screen
    assert not (tmp_path / "state").exists()


def test_the_server_asks_at_a_terminal_too(config: str, tmp_path: Path) -> None:
    assert at_a_terminal(["ca", "init", "--config", config], TYPED, TYPED)[0] == 0
    with socket.socket() as taken:  # so that it ends by itself, after it has read its keys
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with (tmp_path / "ca.toml").open("a") as file:
            file.write(f'address = "127.0.0.1:{taken.getsockname()[1]}"\n')
        code, screen = at_a_terminal(["ca", "serve", "--config", config], TYPED)
        assert (code, "can not listen" in screen) == (1, True), screen
    code, screen = at_a_terminal(["ca", "serve", "--config", config], "\x04")  # Ctrl-D
    assert code == 1
    assert screen.splitlines()[-1].endswith("ringfence ca serve: no passphrase was typed; nothing was done"), screen


def test_who_knows_the_passphrase_leaves_no_core_dump(tmp_path: Path) -> None:
    file = tmp_path / "passphrase"
    file.touch(mode=0o600)
    file.write_text(TYPED)
    script = (
        "import ctypes, sys; from pathlib import Path; from ca.authority.keys import ask_passphrase\n"
        "ask_passphrase(Path(sys.argv[1])); print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"  # PR_GET_DUMPABLE
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(file)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout == "0\n", done.stderr


def test_without_a_terminal_nobody_is_asked(config: str) -> None:

    done = subprocess.run(
        [*RINGFENCE, "ca", "init", "--config", config],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    assert "no passphrase: keys on disk are always encrypted" in done.stderr
