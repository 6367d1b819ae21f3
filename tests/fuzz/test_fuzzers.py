"""The coverage-guided fuzzers, for a bounded time: what they find fails here with the input to run it again."""

import base64
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
TARGETS: Final = ("bundles", "certificates", "csr", "decoder", "evidence", "frames", "jwts")
_SECONDS: Final = 10
# CI goes the same way every time, as the properties do: a find belongs in a session at work.
_SEED: Final = ["-seed=1"] if "CI" in os.environ else []


def run(*arguments: str, module: str, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=_SECONDS + 90,
        check=False,
    )


def test_every_fuzzer_is_run() -> None:
    shared = {"der", "harness", "test_fuzzers"}
    assert {each.stem for each in (ROOT / "tests/fuzz").glob("*.py")} - shared == set(TARGETS)


@pytest.mark.parametrize("target", TARGETS)
def test_the_fuzzer_finds_nothing(target: str) -> None:
    limits = [f"-max_total_time={_SECONDS}", "-timeout=20", "-rss_limit_mb=1024"]
    done = run(*limits, *_SEED, module=f"tests.fuzz.{target}")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    (runs,) = re.findall(r"^Done (\d+) runs", done.stderr, re.MULTILINE)
    features = [int(each) for each in re.findall(r"ft: (\d+)", done.stderr)]
    assert int(runs) > 200  # it has run,
    assert features[-1] > 20  # and was guided by what it reached


_BROKEN: Final = """
import atheris

with atheris.instrument_imports(include=["victim"]):
    import victim

from tests.fuzz import harness

if __name__ == "__main__":
    harness.main("broken", victim.read, [b"a", b"bc"])
"""
_VICTIM: Final = """
def read(data):
    if data[:1] == b"a":
        if data[1:2] == b"Z":
            raise ValueError("found it")
"""


def test_a_finding_fails_and_can_be_run_again(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(_BROKEN)
    (tmp_path / "victim.py").write_text(_VICTIM)
    found = run("-runs=2000000", "-seed=1", module="broken", path=tmp_path)
    assert found.returncode != 0
    assert "found it" in found.stdout + found.stderr
    (text,) = re.findall(r"run again: .venv/bin/python -m broken --input (\S+)", found.stderr)
    assert base64.b64decode(text).startswith(b"aZ")

    again = run("--input", text, module="broken", path=tmp_path)
    assert again.returncode == 1
    assert "found it" in again.stderr
    assert run("--input", base64.b64encode(b"a").decode(), module="broken", path=tmp_path).returncode == 0
