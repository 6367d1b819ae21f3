"""Network namespaces of a measure that needs no lab, and what cleans up after it, however it ends."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bench.testbed import BenchError


@contextmanager
def guarded(script: str, *arguments: str) -> Iterator[None]:
    """Run a shell script at the end of the block, or of this process if that comes first, also when it is killed.

    It is run by a process that waits for the end of a pipe that only this process holds open.
    """
    guard = subprocess.Popen(
        ["/bin/sh", "-c", f"cat >/dev/null; {script}", "guard", *arguments],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        assert guard.stdin is not None
        guard.stdin.close()
        guard.wait()


@contextmanager
def namespaces(names: Sequence[str]) -> Iterator[None]:
    """Network namespaces with loopback."""
    with guarded('for each in "$@"; do ip netns del "$each"; done', *names):
        for name in names:
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        yield


def run(*command: str) -> str:
    """What it prints; raises BenchError with what it said if it failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except FileNotFoundError as error:
        raise BenchError(f"{command[0]} is not installed; scripts/setup installs it") from error
    if done.returncode:
        raise BenchError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
