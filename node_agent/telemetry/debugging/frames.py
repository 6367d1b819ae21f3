"""A place in the program as people write it: ``function (package/file.py:line)``."""

import os
import sys
from types import CodeType, FrameType
from typing import Final

import node_agent

_PACKAGES: Final = (os.path.dirname(os.path.dirname(node_agent.__file__)), os.path.dirname(os.__file__))


def of_all_threads() -> dict[int, FrameType]:
    """The innermost frame of each thread, by its identifier."""
    return sys._current_frames()  # noqa: SLF001  (public in all but its name: the library's documentation has it)


def place(code: CodeType, line: int | None) -> str:
    """``function (package/file.py:line)``."""
    return f"{code.co_qualname} ({short_path(code.co_filename)}:{line or code.co_firstlineno})"


def short_path(path: str) -> str:
    """``path`` from its package on: ``trio/_core/_run.py``."""
    _, inside, rest = path.rpartition("/site-packages/")
    if inside:
        return rest
    for directory in _PACKAGES:
        if path.startswith(f"{directory}/"):
            return path[len(directory) + 1 :]
    return path
