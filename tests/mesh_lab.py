"""The lab that the mesh tests run in: its name, its command, and how to wait for what happens in it."""

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from tests.namespaces import enter_namespace

T = TypeVar("T")

ROOT: Final = Path(__file__).resolve().parents[1]
LAB_NAME: Final = os.environ.get("RINGFENCE_TEST_LAB", "test")
WORKERS: Final = os.environ.get("RINGFENCE_TEST_WORKERS", "1")  # of each agent: any mesh test may be run with more
CAPTURE: Final = os.environ.get("RINGFENCE_TEST_CAPTURE", "inpod")  # any mesh test may be run with another
STATE_DIR: Final = Path(f"/run/ringfence-lab-{LAB_NAME}")
LAB: Final = str(ROOT / "scripts" / "lab")
ENVIRONMENT: Final = {**os.environ, "RINGFENCE_LAB": LAB_NAME}

DEADLINE_S: Final = 60.0
"""How long a test waits for a thing that takes milliseconds on an idle machine."""


class LabCommandError(AssertionError):
    """A lab command failed; the text is what it printed."""


def wait_for(what: str, look: Callable[[], T | None], *, deadline_s: float = DEADLINE_S) -> T:
    """Return what ``look`` finds as soon as it is true (not None, not empty); fails after ``deadline_s``."""
    limit = time.monotonic() + deadline_s
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > limit:
            raise AssertionError(f"waited {deadline_s:g} s for {what}")
        time.sleep(0.01)


def in_namespace(path: Path, make: Callable[[], T]) -> T:
    """Run ``make`` inside a network namespace, in a thread of its own, and return its result."""
    result: list[T] = []
    failure: list[BaseException] = []

    def enter() -> None:
        try:
            enter_namespace(path)
            result.append(make())
        except BaseException as error:  # carried to the caller's thread
            failure.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


def read_all(connection: socket.socket) -> bytes:
    """Read until EOF."""
    parts = []
    while data := connection.recv(1 << 20):
        parts.append(data)
    return b"".join(parts)
