"""docs/lab.md, typed as it stands, with the real agents."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.conftest import LabUnderTest

pytestmark = pytest.mark.mesh

_ROOT = Path(__file__).resolve().parents[2]


def _commands(text: str) -> Iterator[str]:
    """What is typed after each ``# `` prompt of the console blocks, here-documents included."""
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        yield from re.findall(r"^# (.*<<'END'\n(?:.*\n)*?END|.*)$", block, re.MULTILINE)


def test_a_newcomer_adds_a_pod_and_a_service(lab: LabUnderTest, tmp_path: Path) -> None:
    del lab.environment["RINGFENCE_LAB_COMMAND"]
    text = (_ROOT / "docs/lab.md").read_text()
    commands = list(_commands(text[: text.index("## Commands")]))
    listening = "until scripts/lab exec web -- curl -s -o /dev/null http://127.0.0.1:8080/; do :; done"
    serve = next(number for number, command in enumerate(commands) if command.endswith("&"))
    commands[serve] = commands[serve].removesuffix("&") + " >server.log 2>&1 &"
    commands.insert(serve + 1, listening)
    script = (
        "\n".join(commands).replace("scripts/lab", str(_ROOT / "scripts/lab")).replace("--seconds 10", "--seconds 1")
    )
    environment = {**lab.environment, "TMPDIR": str(tmp_path)}

    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env=environment,
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    assert "hello from web" in done.stdout
    assert '"source_identity":"spiffe://cluster.local/ns/default/sa/default"' in done.stdout
    assert '"destination_identity":"spiffe://cluster.local/ns/default/sa/web"' in done.stdout
    assert os.path.exists(next(tmp_path.iterdir()) / "link.pcap")
