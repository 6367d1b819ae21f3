"""What the agent itself costs: memory, processor time, descriptors."""

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from node_agent.telemetry.metrics import Metrics

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_STATM: Final = Path("/proc/self/statm")  # proc(5): pages of total size, resident, shared, ...
_DESCRIPTORS: Final = "/proc/self/fd"


def register_process_metrics(metrics: Metrics, *, version: str, wall: Callable[[], float] = time.time) -> None:
    """Register the ``ringfence_process_*`` metrics and ``ringfence_build_info``; the process starts now."""
    started_at_s = wall()
    metrics.gauge("ringfence_build_info", "Always 1.", lambda: {(version,): 1}, labels=("version",))
    metrics.gauge(
        "ringfence_process_start_time_seconds", "When the agent started, since the epoch.", lambda: started_at_s
    )
    register_resources(metrics)


def register_resources(metrics: Metrics) -> None:
    """Register what this process uses; what several processes of an agent use is added up."""
    metrics.gauge("ringfence_process_resident_memory_bytes", "Resident memory of the agent.", resident_bytes)
    metrics.counter(
        "ringfence_process_cpu_seconds_total", "Processor time of the agent, user and system.", time.process_time
    )
    metrics.gauge(
        "ringfence_process_open_fds", "Open file descriptors of the agent.", lambda: len(os.listdir(_DESCRIPTORS))
    )
    metrics.gauge("ringfence_process_max_fds", "Descriptors that it may have open.", _max_descriptors)
    metrics.gauge(
        "ringfence_process_fds_ratio",
        "Open descriptors of what may be, in that process of the agent that is nearest to its limit.",
        lambda: len(os.listdir(_DESCRIPTORS)) / _max_descriptors(),
        merge="max",
    )


def _max_descriptors() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(_STATM.read_text().split()[1]) * _PAGE_BYTES
