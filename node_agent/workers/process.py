"""One worker as the parent sees it: its process, its channel, and what it was asked.

    starting --Ready--> ready --its end, or ours--> ended

The process is started from the main thread, not from a thread of trio's: the
worker asks the kernel for a signal when the thread that made it ends (prctl(2),
PR_SET_PDEATHSIG), and trio's threads end when they have been idle.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import trio

from ca.errors import WireError
from node_agent.workers.channel import PARENTS_SPARE_DESCRIPTORS, Channel
from node_agent.workers.messages import Answer, AnswerRow, Message, Question, ToParent, Topic

_log: Final = logging.getLogger("ringfence.workers")

_KILLED_AFTER_S: Final = 2.0
"""How long a worker may take to end when its channel has been closed: it cuts its connections and records them."""


Handle = Callable[["WorkerProcess", Message, list[int]], None]
"""Takes a message of a worker's, and the descriptors with it."""


class NoAnswer(Exception):
    """A worker did not answer in time, or ended."""


@dataclass(slots=True)
class _Asked:
    rows: list[AnswerRow] = field(default_factory=list)
    done: trio.Event = field(default_factory=trio.Event)
    complete: bool = False


class WorkerProcess:
    """Owns the process and the channel; ``run`` ends both."""

    def __init__(self, number: int, *, now: float) -> None:
        """Start the process; raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-m", "node_agent.workers", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                )
            except OSError:
                ours.close()
                raise
        self.number = number
        self.started_at = now
        self.ready = False
        self.channel = Channel(ours, receives=ToParent, spare_descriptors=PARENTS_SPARE_DESCRIPTORS)
        self.ended = trio.Event()  # nothing that is asked or told from now on reaches it
        self._asked: dict[int, _Asked] = {}
        self._questions = 0

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """As ``subprocess`` has it: negative for a signal, None while it runs."""
        return self._process.returncode

    async def run(self, handle: Handle) -> int:
        """Talk to the worker until it ends; ``handle`` gets every message that is not an answer to a question.

        Returns the exit code, negative for a signal.  Cancelling ends the worker:
        it cuts its connections, writes their records and goes, or is killed.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                await self._read(handle)
                nursery.cancel_scope.cancel()
        finally:
            self.ready = False
            self.ended.set()
            self.channel.close()  # for the worker this is the end
            for asked in self._asked.values():
                asked.done.set()
            with trio.CancelScope(shield=True):
                await self._reap()
        return self._process.returncode

    async def ask(self, topic: Topic, *, deadline_s: float) -> list[AnswerRow]:
        """Return the worker's complete answer.

        Raises:
            NoAnswer: not within ``deadline_s``, or it has ended.
        """
        if self.ended.is_set():
            raise NoAnswer(f"worker {self.number} has ended")
        self._questions += 1
        number, asked = self._questions, _Asked()
        self._asked[number] = asked
        self.channel.post(Question(number=number, topic=topic))
        try:
            with trio.move_on_after(deadline_s):
                await asked.done.wait()
        finally:
            del self._asked[number]
        if not asked.complete:
            raise NoAnswer(f"worker {self.number} does not answer")
        return asked.rows

    def kill(self) -> None:
        """End the process at once."""
        if self._process.poll() is None:
            self._process.kill()

    async def _write(self) -> None:
        try:
            await self.channel.write()
        except OSError:
            pass  # it has ended, which ``_read`` sees too, after what it said last

    async def _read(self, handle: Handle) -> None:
        try:
            while received := await self.channel.receive():
                for message, descriptors in received:
                    if isinstance(message, Answer) and message.number in self._asked:
                        self._take(message)
                    else:
                        handle(self, message, descriptors)
        except OSError as error:
            _log.debug("the channel of worker %d broke: %s", self.number, error)
        except WireError as error:
            _log.error("worker %d is not understood, ending it: %s", self.number, error)
            self.kill()

    def _take(self, answer: Answer) -> None:
        asked = self._asked[answer.number]
        asked.rows += answer.rows
        if answer.is_last:
            asked.complete = True
            asked.done.set()

    async def _reap(self) -> None:
        pidfd = os.pidfd_open(self.pid)
        try:
            with trio.move_on_after(_KILLED_AFTER_S) as patience:
                await trio.lowlevel.wait_readable(pidfd)
            if patience.cancelled_caught:
                _log.error("worker %d (pid %d) does not end, killing it", self.number, self.pid)
                self._process.send_signal(signal.SIGKILL)
                await trio.lowlevel.wait_readable(pidfd)
        finally:
            os.close(pidfd)
        self._process.wait()
