"""Where every task and every thread of this process is, now.

The tasks are a tree: who waits for whom.  Siblings that stand at the same places
are one entry with their number, because a thousand connections do.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from typing import Final

import trio

from node_agent.telemetry.debugging.frames import of_all_threads, place, short_path

_MAX_TASKS: Final = 2_000  # 20 us each, in which nothing else runs
_MAX_DEPTH: Final = 100
_TRAPS: Final = "trio/_core/_traps.py"
_INDENT: Final = "  "


class _Budget:
    def __init__(self) -> None:
        self.left = _MAX_TASKS


def task_lines() -> list[str]:
    """The tree of tasks, a line each; called from trio's thread."""
    root = trio.lowlevel.current_root_task()
    return [] if root is None else list(_lines(root, 0, _Budget()))


def _lines(task: trio.lowlevel.Task, depth: int, budget: _Budget) -> Iterator[str]:
    budget.left -= 1
    yield f"{task.name}  {_where(task)}"
    subtrees: Counter[tuple[str, ...]] = Counter()
    left_out = 0
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            if budget.left <= 0 or depth >= _MAX_DEPTH:
                left_out += 1
            else:
                subtrees[tuple(_lines(child, depth + 1, budget))] += 1
    for (head, *rest), count in subtrees.items():
        yield f"{_INDENT}{f'{count} x ' if count > 1 else ''}{head}"
        for line in rest:
            yield _INDENT + line
    if left_out:
        yield f"{_INDENT}and {left_out} more"


def _where(task: trio.lowlevel.Task) -> str:
    """The place at which the task waits, and the last one of ours that led there."""
    places = [
        (frame.f_code, line)
        for frame, line in task.iter_await_frames()
        if short_path(frame.f_code.co_filename) != _TRAPS  # where every wait ends
    ]
    if not places:
        return "(not started)"
    ours = [each for each in places if "/site-packages/" not in each[0].co_filename]
    shown = dict.fromkeys(place(*each) for each in (*ours[-1:], places[-1]))
    return " > ".join(shown)


def thread_lines() -> list[str]:
    """Every thread and its stack, innermost first, a line each."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    lines = []
    for ident, frame in of_all_threads().items():
        lines.append(names.get(ident, "a thread"))
        at = frame
        for _ in range(_MAX_DEPTH):
            lines.append(_INDENT + place(at.f_code, at.f_lineno))
            if at.f_back is None:
                break
            at = at.f_back
    return lines
