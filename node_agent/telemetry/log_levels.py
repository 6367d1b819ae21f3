"""What is logged, by module: a level for everything, and levels for some loggers, changed while the agent runs.

``LogLevels`` is the wish, a value; ``LogControl`` holds the one in force in the
agent and tells who carries it on (worker processes); ``apply`` is all that
touches the logging of a process.  Access records are not affected.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from node_agent.errors import ConfigError

LEVELS: Final = ("debug", "info", "warning", "error")
_ROOT: Final = "ringfence"
_ELSEWHERE: Final = ("ringfence.worker",)  # a worker's own: the agent's main process does not load it
_ACCESS: Final = "ringfence.access"  # records, not messages: always written


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLevels:
    """``level`` for all loggers but those in ``modules`` and what is below them."""

    level: str
    modules: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def describe(self) -> dict[str, object]:
        """As the admin socket shows it (docs/cli.md)."""
        return {"level": self.level, "modules": dict(sorted(self.modules.items()))}


def apply(levels: LogLevels) -> None:
    """Let this process log so.

    Raises:
        ConfigError: a level is not one of :data:`LEVELS`.
    """
    for level in (levels.level, *levels.modules.values()):
        check(level)
    logging.getLogger().setLevel(levels.level.upper())
    for name in known_modules():
        if name not in levels.modules:
            logging.getLogger(name).setLevel(logging.NOTSET)
    for name, level in levels.modules.items():
        logging.getLogger(name).setLevel(level.upper())


def check(level: str) -> None:
    """Raises ConfigError for what is no level."""
    if level not in LEVELS:
        raise ConfigError(f"log level {level!r} is unknown; use one of {', '.join(LEVELS)}")


def known_modules() -> list[str]:
    """The names that log in this process, or in one that is told what this one is."""
    names = (*logging.root.manager.loggerDict, _ROOT, *_ELSEWHERE)
    return sorted({name for name in names if name == _ROOT or name.startswith(f"{_ROOT}.")} - {_ACCESS})


class LogControl:
    """The levels in force, and what they were at the start."""

    def __init__(self, configured: str) -> None:
        self._configured = configured
        self.levels = LogLevels(level=configured)
        self.on_changed: list[Callable[[LogLevels], None]] = []

    def set(self, level: str | None, module: str | None) -> None:
        """Change one level; None is what it was at the start, of a module the level of all.

        Both None take everything back.

        Raises:
            ConfigError: no such level, or nothing of that name logs.
        """
        if level is not None:
            check(level)
        if module is not None and module not in known_modules():
            raise ConfigError(f"nothing logs as {module!r}; what does: {', '.join(known_modules())}")
        if module is None:
            others = {} if level is None else self.levels.modules
            changed = LogLevels(level=level or self._configured, modules=MappingProxyType(dict(others)))
        else:
            modules = {name: each for name, each in self.levels.modules.items() if name != module}
            if level is not None:
                modules[module] = level
            changed = replace(self.levels, modules=MappingProxyType(modules))
        apply(changed)
        self.levels = changed
        for tell in self.on_changed:
            tell(changed)

    def describe(self) -> dict[str, object]:
        """As the admin socket shows it."""
        return self.levels.describe()
