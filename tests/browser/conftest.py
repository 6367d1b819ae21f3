"""A browser for the session, and the dashboard of a mesh that does not exist."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from node_agent.dashboard import source
from tests.browser.stage import Stage
from tests.chromium import Chromium


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    with Chromium() as made:
        yield made


@pytest.fixture
def stage(chromium: Chromium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr(source, "INTERVAL_S", 0.25)
    made = Stage(chromium, tmp_path)
    yield made
    made.close()
