"""Which worker of an agent has what, and how many tunnels one has accepted for another."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tests.mesh_builder import Mesh
from tests.shared_ground import SharedGround

DESTINATION: Final = 2
"""The node whose agent is looked at."""


def handovers(mesh: Mesh) -> dict[str, float]:
    return {
        result: mesh.metric(DESTINATION, "ringfence_worker_handovers_total", result=result)
        for result in ("passed", "returned", "dropped")
    }


def grown(mesh: Mesh, before: dict[str, float]) -> dict[str, float]:
    return {result: count - before[result] for result, count in handovers(mesh).items()}


def holder(ground: SharedGround) -> int:
    """The process of the worker that has the connections of the peer."""
    mesh = ground.stage.mesh
    (worker,) = {row["worker"] for row in mesh.ringfence(DESTINATION, "connections")}
    return pids(mesh)[worker]


def pids(mesh: Mesh) -> dict[int, int]:
    return {row["worker"]: row["pid"] for row in mesh.ringfence(DESTINATION, "status")["workers"]}


@contextmanager
def halted(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
