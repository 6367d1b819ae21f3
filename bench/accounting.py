"""What processes cost: CPU time and memory, from /proc.

A process counts with all its threads and with all its descendants, also those
that have ended and were waited for.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Resident and proportional set size, in bytes."""

    rss_bytes: int
    pss_bytes: int


def with_descendants(pids: Iterable[int]) -> list[int]:
    """These processes and all that they started, directly or not."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: list[int] = []
    waiting = list(set(pids))  # a peer may name one process twice
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += children.get(pid, ())
    return found


def cpu_s(pids: Iterable[int]) -> float:
    """User and system time so far; proc_pid_stat(5) fields 14 to 17."""
    ticks = 0
    for pid in with_descendants(pids):
        if fields := _stat(pid):
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / _TICKS_PER_S


def memory(pid: int) -> Memory:
    """Of a process and its descendants; proc_pid_smaps(5), the roll-up."""
    rss = pss = 0
    for each in with_descendants([pid]):
        text = Path(f"/proc/{each}/smaps_rollup").read_text(encoding="ascii")
        values = {line.split()[0]: int(line.split()[1]) for line in text.splitlines()[1:]}
        rss += values["Rss:"] * 1024
        pss += values["Pss:"] * 1024
    return Memory(rss_bytes=rss, pss_bytes=pss)


def own_rss_mb() -> float:
    """Of this process and what it has started."""
    return memory(os.getpid()).rss_bytes / 1e6


def _stat(pid: int) -> list[str]:
    """From field 3 (state) on; empty if the process has gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
