"""Measures that are processes of their own: what they print is taken by peer, and what they die of is told."""

from pathlib import Path

import pytest

from bench import alone
from bench.testbed import BenchError


def _module(directory: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a measure ``registry`` of what ``text`` does."""
    (directory / "bench").mkdir()
    (directory / "bench" / "__init__.py").touch()
    (directory / "bench" / f"{name}.py").write_text(text)
    monkeypatch.setattr(alone, "ROOT", directory)
    monkeypatch.setitem(alone._MODULES, "registry", (f"{name} --rounds {{rounds}}", "a test"))


def test_plain_figures_are_ringfences_and_others_are_taken_by_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "import json, sys; print(json.dumps({'lookup_us': 1.5, 'rounds': int(sys.argv[2])}))"
    _module(tmp_path, "plain", text, monkeypatch)
    assert alone.measure("registry", {"rounds": 3}) == {"ringfence": {"lookup_us": [1.5], "rounds": [3]}}
    text = "import json; print(json.dumps({'direct': {'a': [1, 2]}, 'ringfence': {'a': [3, 4]}}))"
    (tmp_path / "bench" / "plain.py").write_text(text)
    assert alone.measure("registry", {"rounds": 3}) == {"direct": {"a": [1, 2]}, "ringfence": {"a": [3, 4]}}


def test_the_last_words_of_one_that_fails_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _module(tmp_path, "failing", "import sys; sys.exit('no Envoy here')", monkeypatch)
    with pytest.raises(BenchError, match="no Envoy here"):
        alone.measure("registry", {"rounds": 3})


def test_every_module_is_there() -> None:
    folder = Path(alone.__file__).parent
    for name in alone.ALONE:
        module = alone._MODULES[name][0].split()[0]
        assert (folder / f"{module}.py").exists() or (folder / module / "__main__.py").exists(), name
