"""The loop of the live view: keys, the terminal's size, and a look at the agent every interval.

One thread, which waits in ``select``.  The terminal is as it was before at the
end, also after an error and a signal.
"""

import os
import re
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from rich.console import Console
from rich.live import Live

from node_agent.cli.agent_address import AgentUnavailable
from node_agent.cli.agent_socket import ask
from node_agent.cli.top.rates import Rates, rates
from node_agent.cli.top.screen import draw
from node_agent.cli.top.state import State

_ANSWER_S: Final = 5.0
_READ_BYTES: Final = 1024
_SEQUENCE: Final = re.compile(r"\x1b[\[O]([0-9;]*)([A-Za-z~])|[\s\S]")
_NAMES: Final[Mapping[str, str]] = {"A": "up", "B": "down", "H": "home", "F": "end"}
_NUMBERED: Final[Mapping[str, str]] = {"1": "home", "4": "end", "5": "pageup", "6": "pagedown", "7": "home", "8": "end"}
_CONTROLS: Final[Mapping[str, str]] = {
    "\x1b": "escape",
    "\r": "enter",
    "\n": "enter",
    "\x7f": "backspace",
    "\x08": "backspace",
}


def run_live(agent: str, state: State) -> int:
    """Show the view until somebody ends it; raises AgentUnavailable only for the first look."""
    before = ask(agent, "/traffic", timeout_s=_ANSWER_S)
    console = Console(markup=False, emoji=False, highlight=False)
    with ExitStack() as stack:
        wake = stack.enter_context(_signals())
        stack.enter_context(_keys_at_once(sys.stdin.fileno()))
        live = stack.enter_context(Live(console=console, screen=True, auto_refresh=False))
        found, problem = Rates(), ""
        look_at = time.monotonic() + min(state.interval_s, 1.0)  # the first rates soon
        while not state.is_over:
            now = time.monotonic()
            if now >= look_at and not state.is_paused:
                look_at = now + state.interval_s
                try:
                    after = ask(agent, "/traffic", timeout_s=_ANSWER_S)
                    found, before, problem = rates(before, after), after, ""
                except AgentUnavailable as error:  # it may be on its way back
                    problem = f"no answer, trying again: {error}"
            size = console.size
            screen, state = draw(found, state, columns=size.width, lines=size.height, problem=problem)
            live.update(screen, refresh=True)
            for key in _wait(wake, None if state.is_paused else max(0.0, look_at - time.monotonic())):
                state = state.press(key)
    return 0


def _wait(wake: int, seconds: float | None) -> list[str]:
    """The keys that were pressed within ``seconds``; none when the time is over, or the size has changed."""
    stdin = sys.stdin.fileno()
    ready, _, _ = select.select([stdin, wake], [], [], seconds)
    if wake in ready:
        os.read(wake, _READ_BYTES)
    if stdin not in ready:
        return []
    data = os.read(stdin, _READ_BYTES)
    return list(keys(data.decode(errors="replace"))) if data else ["q"]  # the terminal has gone


def keys(text: str) -> Iterator[str]:
    """The keys that a terminal means by what it sends: characters, or names such as ``up``."""
    for found in _SEQUENCE.finditer(text):
        number, final = found.group(1), found.group(2)
        if final is None:
            yield _CONTROLS.get(found.group(), found.group())
        elif final == "~" and number in _NUMBERED:
            yield _NUMBERED[number]
        elif final in _NAMES:
            yield _NAMES[final]


@contextmanager
def _keys_at_once(fd: int) -> Iterator[None]:
    """Keys come one by one and are not shown; Ctrl-C still interrupts."""
    saved: list[Any] = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, saved)


@contextmanager
def _signals() -> Iterator[int]:
    """A descriptor that can be read when the terminal's size has changed; SIGTERM and SIGHUP end the view in order."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def resized(*_: object) -> None:
        try:
            os.write(writer, b"w")
        except BlockingIOError:
            pass  # it can be read already

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    saved = {
        signal.SIGWINCH: signal.signal(signal.SIGWINCH, resized),
        signal.SIGTERM: signal.signal(signal.SIGTERM, end),
        signal.SIGHUP: signal.signal(signal.SIGHUP, end),
        signal.SIGTSTP: signal.signal(signal.SIGTSTP, signal.SIG_IGN),  # stopped, it would leave the screen as it is
    }
    try:
        yield reader
    finally:
        for number, handler in saved.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)
