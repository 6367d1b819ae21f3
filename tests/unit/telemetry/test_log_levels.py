"""Levels by module: what is set, what is below it, and back again."""

import logging
from collections.abc import Iterator

import pytest

from node_agent.errors import ConfigError
from node_agent.telemetry.access_log import ACCESS_LOGGER
from node_agent.telemetry.log_levels import LogControl, LogLevels, apply, known_modules

IDENTITY = logging.getLogger("ringfence.identity")
BELOW = logging.getLogger("ringfence.identity.below")
OTHER = logging.getLogger("ringfence.health")


@pytest.fixture(autouse=True)
def levels_as_before() -> Iterator[None]:
    saved = {name: logging.getLogger(name).level for name in known_modules()}
    root = logging.getLogger().level
    yield
    logging.getLogger().setLevel(root)
    for name in known_modules():
        logging.getLogger(name).setLevel(saved.get(name, logging.NOTSET))


def in_force() -> list[str]:
    return [logging.getLevelName(each.getEffectiveLevel()) for each in (IDENTITY, BELOW, OTHER)]


def test_a_module_and_what_is_below_it_have_a_level_of_their_own_until_it_is_taken_back() -> None:
    control = LogControl("warning")
    told: list[LogLevels] = []
    control.on_changed.append(told.append)
    apply(control.levels)
    control.set("debug", "ringfence.identity")
    assert in_force() == ["DEBUG", "DEBUG", "WARNING"]
    control.set("error", "ringfence.identity.below")
    assert in_force() == ["DEBUG", "ERROR", "WARNING"]
    control.set("info", None)
    assert in_force() == ["DEBUG", "ERROR", "INFO"]
    assert control.describe() == {
        "level": "info",
        "modules": {"ringfence.identity": "debug", "ringfence.identity.below": "error"},
    }
    control.set(None, "ringfence.identity")
    assert in_force() == ["INFO", "ERROR", "INFO"]
    control.set(None, None)
    assert in_force() == ["WARNING"] * 3
    assert control.describe() == {"level": "warning", "modules": {}}
    assert [dict(each.modules) for each in told][-2:] == [{"ringfence.identity.below": "error"}, {}]


@pytest.mark.parametrize(
    ("level", "module", "says"),
    [
        ("loud", None, "log level 'loud' is unknown; use one of debug, info, warning, error"),
        ("loud", "ringfence.identity", "log level 'loud'"),
        ("debug", "ringfence.identiy", "nothing logs as 'ringfence.identiy'; what does: ringfence, "),
        ("debug", "trio", "nothing logs as 'trio'"),
        ("error", ACCESS_LOGGER, "nothing logs as 'ringfence.access'"),
    ],
)
def test_what_does_not_exist_is_refused_and_changes_nothing(level: str, module: str | None, says: str) -> None:
    control = LogControl("info")
    told: list[LogLevels] = []
    control.on_changed.append(told.append)
    with pytest.raises(ConfigError, match=says):
        control.set(level, module)
    assert (control.describe(), told) == ({"level": "info", "modules": {}}, [])


def test_access_records_are_written_whatever_the_level() -> None:
    access = logging.getLogger(ACCESS_LOGGER)
    access.setLevel(logging.INFO)
    apply(LogLevels(level="error", modules={"ringfence": "error"}))
    assert access.isEnabledFor(logging.INFO)
    apply(LogLevels(level="error"))
    assert access.isEnabledFor(logging.INFO)
