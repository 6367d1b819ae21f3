"""The stage of each test."""

import pytest

from tests.explanation_stage import Stage


@pytest.fixture
def stage() -> Stage:
    return Stage()
