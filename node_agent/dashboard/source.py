"""What the mesh looks like now: asked of the local agent, for as long as somebody looks.

One question at a time, however many browsers there are.  The next one waits three
times as long as the last one took, so that a big mesh is asked less often and an
agent spends no more than a quarter of its time on being looked at.
"""

import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import h11
import trio

from ca.http_client import TooLong, exchange
from node_agent.dashboard.picture import Picture
from node_agent.dashboard.rates import Rates
from node_agent.dashboard.sights import SightError, Sights

INTERVAL_S: Final = 2.0
_TIMES_AS_LONG: Final = 3.0
_ANSWER_S: Final = 30.0
_LOOKED_AT_S: Final = 30.0  # without a question for so long, nobody looks
_MAX_BYTES: Final = 256 * 1024 * 1024

Ask = Callable[[], Awaitable[object]]


class AgentSilent(Exception):
    """The local agent can not be asked; the text says why and what to do."""


class Source:
    """The newest picture, and what keeps it from being newer."""

    def __init__(self, ask: Ask, *, now: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._now = now
        self._sights = Sights()
        self._rates = Rates()
        self._looked_at = now()
        self._wanted = trio.Event()
        self.picture: Picture | None = None
        self.error: str | None = None
        self.taken_at: float | None = None
        self.interval_s = INTERVAL_S

    @property
    def age_s(self) -> float | None:
        """How old the picture is."""
        return None if self.taken_at is None else self._now() - self.taken_at

    def looked_at(self) -> None:
        """Somebody looks."""
        self._looked_at = self._now()
        self._wanted.set()

    async def run(self) -> None:
        """Ask again and again while somebody looks."""
        while True:
            began = self._now()
            await self._take()
            took_s = self._now() - began
            self.interval_s = max(INTERVAL_S, _TIMES_AS_LONG * took_s)
            await trio.sleep(max(self.interval_s - took_s, 0.0))
            while self._now() - self._looked_at > _LOOKED_AT_S:
                self._wanted = trio.Event()
                await self._wanted.wait()

    async def _take(self) -> None:
        try:
            document = await self._ask()
            mesh = self._sights.take(document, now=self._now())
            self.picture = Picture(mesh, self._rates)
        except (AgentSilent, SightError) as error:
            self.error = str(error)
            return
        self.error = None
        self.taken_at = self._now()


def asking(socket: Path) -> Ask:
    """Ask the agent behind this unix socket."""

    async def ask() -> object:
        try:
            with trio.fail_after(_ANSWER_S):
                async with await trio.open_unix_socket(socket) as stream:
                    request = h11.Request(
                        method="GET", target="/mesh", headers=[("Host", "agent"), ("Connection", "close")]
                    )
                    answer = await exchange(stream, request, max_body_bytes=_MAX_BYTES)
        except FileNotFoundError:
            raise AgentSilent(f"there is no agent socket {socket}; is the agent running? (--agent PATH)") from None
        except PermissionError:
            raise AgentSilent(f"may not use {socket}: it belongs to the agent's user; try as root") from None
        except (OSError, trio.BrokenResourceError) as error:
            why = error.strerror if isinstance(error, OSError) else None
            raise AgentSilent(f"the agent on {socket} can not be asked: {why or 'it broke off'}") from None
        except trio.TooSlowError:
            raise AgentSilent(f"the agent on {socket} did not answer within {_ANSWER_S:g} s") from None
        except TooLong:
            raise AgentSilent(f"the agent on {socket} answered with more than {_MAX_BYTES} bytes") from None
        except h11.RemoteProtocolError:
            raise AgentSilent(f"{socket} does not answer as a Ringfence agent does; check --agent") from None
        if answer.status != 200:
            raise AgentSilent(f"the agent on {socket} answered {answer.status}: it may be older than this command")
        try:
            # Big answers are read aside: browsers are not to wait for it.
            return await trio.to_thread.run_sync(json.loads, answer.body)
        except (ValueError, RecursionError):
            raise AgentSilent(f"{socket} does not answer as a Ringfence agent does; check --agent") from None

    return ask
