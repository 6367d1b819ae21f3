"""A profile in the formats that programs draw flame graphs of; pure.

collapsed    ``frame;frame;frame count``, a line a stack: flamegraph.pl, inferno, speedscope
speedscope   https://github.com/jlfwong/speedscope/wiki/Importing-from-custom-sources
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Process = Mapping[str, Any]


def collapsed(processes: Iterable[Process], *, with_idle: bool) -> Iterator[str]:
    """A line a stack, the process first; the most seen first."""
    for process in processes:
        for stack, count in _stacks(process, with_idle=with_idle):
            yield f"{process['process']};{stack} {count}"


def speedscope(processes: Iterable[Process], *, with_idle: bool) -> dict[str, object]:
    """One file with a profile for each process."""
    indices: dict[str, int] = {}
    profiles = []
    for process in processes:
        samples, weights = [], []
        for stack, count in _stacks(process, with_idle=with_idle):
            samples.append([indices.setdefault(frame, len(indices)) for frame in stack.split(";")])
            weights.append(count)
        profiles.append(
            {
                "type": "sampled",
                "name": process["process"],
                "unit": "none",
                "startValue": 0,
                "endValue": sum(weights),
                "samples": samples,
                "weights": weights,
            }
        )
    return {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "exporter": "ringfence",
        "shared": {"frames": [{"name": name} for name in indices]},
        "profiles": profiles,
    }


def _stacks(process: Process, *, with_idle: bool) -> list[tuple[str, int]]:
    stacks: dict[str, int] = dict(process["stacks"])
    if with_idle:
        stacks |= {f"{thread};(idle)": count for thread, count in process["idle"].items()}
    return sorted(stacks.items(), key=lambda each: (-each[1], each[0]))
