"""TAB in real shells: commands, options, and the names that a running agent knows."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from node_agent.cli.main import COMMANDS
from tests.fake_agent import FakeAgent, fake_agent

ROOT = Path(__file__).parents[3]
_EVIL = {"name": "$(touch pwned)", "namespace": "x\x1b[2J"}

_BASH = """
eval "$(ringfence completion bash)"
COMP_LINE=$1; COMP_POINT=${#COMP_LINE}; COMP_TYPE=9; COMP_KEY=9
read -ra COMP_WORDS <<<"$COMP_LINE"; [[ $COMP_LINE == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
function=$(complete -p ringfence | sed 's/.*-F \\([^ ]*\\).*/\\1/')
$function ringfence "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}" 2>/dev/null
printf '%s\\n' "${COMPREPLY[@]}"
"""
_FISH = 'ringfence completion fish | source; complete --do-complete "$argv[1]"'
# zsh completes in an interactive shell only: one in a pseudo-terminal of its own (zsh/zpty).
_ZSH = """
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell 'PS1=; unsetopt zle_bracketed_paste; autoload -Uz compinit; compinit -u -D'
zpty -w shell 'eval "$(ringfence completion zsh)"'
zpty -w shell 'zstyle ":completion:*" list-colors ""; LISTMAX=0; setopt no_beep; print -r READY'
zpty -r shell seen '*READY*READY*'
zpty -w -n shell "$1"$'\\t'
sleep_until=$((SECONDS + 15))
out=
while (( SECONDS < sleep_until )); do
  if zpty -rt shell part; then out+=$part; [[ $out == *$2* ]] && break; else zselect -t 5 2>/dev/null || sleep 0.05; fi
done
print -r -- "$out"
zpty -d shell
"""


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FakeAgent]:
    with fake_agent(tmp_path) as server:
        server.answers["/services"] = [
            {"name": "web", "namespace": "default"},
            {"name": "db", "namespace": "shop"},
            _EVIL,
        ]
        yield server


@pytest.fixture
def environ(tmp_path: Path, agent: FakeAgent) -> dict[str, str]:
    """A PATH on which ``ringfence`` is this checkout's."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    program = bin_ / "ringfence"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from node_agent.cli.main import main\nsys.exit(main())\n"
    )
    program.chmod(0o755)
    return {
        "PATH": f"{bin_}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "TERM": "dumb",
        "RINGFENCE_AGENT": str(agent.server_address),
    }


def shell(program: str, script: str, environ: dict[str, str], *arguments: str) -> str:
    executable = shutil.which(program)
    assert executable is not None, f"{program} is not installed; scripts/setup does it"
    command = [executable, "-c", script, *(["bash"] if program == "bash" else []), *arguments]
    if program == "zsh":
        command = [executable, "-f", "-c", script, "zsh", *arguments]
    done = subprocess.run(
        command, env=environ, cwd=environ["HOME"], capture_output=True, text=True, timeout=120, check=False
    )
    return done.stdout


def offered(line: str, environ: dict[str, str]) -> list[str]:
    return [word.strip() for word in shell("bash", _BASH, environ, line).splitlines()]


def test_bash_completes_commands_options_choices_and_names(environ: dict[str, str]) -> None:
    assert set(offered("ringfence ", environ)) >= set(COMMANDS)
    assert offered("ringfence conn", environ) == ["connections"]
    assert "--service" in offered("ringfence connections --s", environ)
    assert offered("ringfence log-level de", environ) == ["debug"]
    assert offered("ringfence endpoints sh", environ) == ["shop/db"]
    assert set(offered("ringfence connections --service ", environ)) >= {"web", "default/web", "shop/db"}
    assert offered("ringfence ca rot", environ) == ["rotate"]
    assert offered("ringfence help exi", environ) == ["exit-codes"]


def test_a_name_that_a_shell_would_obey_is_not_offered(environ: dict[str, str], tmp_path: Path) -> None:
    everything = "".join(offered("ringfence connections --service ", environ))
    assert "touch" not in everything
    assert "\x1b" not in everything
    assert "\x1b" not in "".join(offered("ringfence connections -n ", environ))
    assert not (tmp_path / "pwned").exists()


def test_without_an_agent_nothing_is_offered_and_nothing_is_said(environ: dict[str, str], tmp_path: Path) -> None:
    environ["RINGFENCE_AGENT"] = str(tmp_path / "missing")
    assert offered("ringfence endpoints sh", environ) == [""]


def test_fish_completes(environ: dict[str, str]) -> None:
    assert "connections" in shell("fish", _FISH, environ, "ringfence conn")
    assert "shop/db" in shell("fish", _FISH, environ, "ringfence endpoints sh")


def test_zsh_completes(environ: dict[str, str]) -> None:
    assert "connections" in shell("zsh", _ZSH, environ, "ringfence conn", "connections")
    assert "shop/db" in shell("zsh", _ZSH, environ, "ringfence endpoints sh", "shop/db")
