"""``python -m node_agent.workers FD``: a worker process; started by the agent only (process.py)."""

import ctypes
import os
import signal
import socket
import sys
from typing import Final

import trio

from ca.errors import WireError
from node_agent import process
from node_agent.export_config import Sink
from node_agent.identity import prefer_aes128
from node_agent.telemetry.exports import Exports
from node_agent.telemetry.logs import configure_logging
from node_agent.workers.channel import SPARE_DESCRIPTORS, Channel
from node_agent.workers.ledger import SharedLedger
from node_agent.workers.messages import Start, ToWorker
from node_agent.workers.worker import run_worker

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_PR_SET_NAME: Final = 15


def main(fd: int) -> int:
    """Run until drained or the parent's end; returns the exit code."""
    sock = socket.socket(fileno=fd)
    os.set_inheritable(fd, False)
    _end_with_parent()
    # A service manager and a terminal send these to the whole group: the parent decides what becomes of us.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    process.settle()
    prefer_aes128()
    return trio.run(_run, sock)


async def _run(sock: socket.socket) -> int:
    channel = Channel(sock, receives=ToWorker, spare_descriptors=SPARE_DESCRIPTORS)
    try:
        try:
            received = await channel.receive()
        except OSError:
            return 1
        if not received:
            return 1
        (start, descriptors), *first = received
        if not isinstance(start, Start):
            raise WireError("the first message is not Start")
        _prctl(_PR_SET_NAME, f"ringfence-w{start.worker}".encode())
        stdout_lock, stderr_lock, counts = descriptors
        logs = configure_logging(
            start.log_level,
            locks=(stdout_lock, stderr_lock),
            worker=start.worker,
            records_to_stdout=Sink.STDOUT in start.config.access_log.sinks,
        )
        ledger = SharedLedger(counts, workers=start.workers, worker=start.worker)
        for each in descriptors:
            os.close(each)
        exports: Exports | None = None
        try:
            exports = Exports(start.config, logs, worker=start.worker)
            return await run_worker(start, first, channel, logs, ledger, exports=exports)
        finally:
            ledger.close()
            if exports is not None:
                exports.close()
            logs.close()
    finally:
        channel.close()


def _end_with_parent() -> None:
    """Let the kernel kill us when the parent is killed; if it is gone already, our channel has ended."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int | bytes) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
