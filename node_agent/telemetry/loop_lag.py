"""How late the loop comes round: what every connection of this process waits for, whoever is to blame.

One task sleeps and looks how much too late it was woken.  Trio and the relay
share a thread (relay/relay.py), and a deadline of trio's ends the relay's turn
only after a whole batch of events, so this sees what either of them does.  It
costs two wake-ups a second and a connection nothing.
"""

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from node_agent.telemetry.metrics import LAG_S, Metrics

_LOOK_S: Final = 0.5


class LoopLag:
    """Registers ``ringfence_loop_lag_seconds``; ``run`` feeds it."""

    def __init__(self, metrics: Metrics, *, sleep_until: Callable[[float], Awaitable[None]] = trio.sleep_until) -> None:
        self._sleep_until = sleep_until
        self._lag_s = metrics.histogram(
            "ringfence_loop_lag_seconds",
            "How much too late the loop came round to something that was due, looked at twice a second.",
            bounds=LAG_S,
        ).of()

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            due = trio.current_time() + _LOOK_S
            await self._sleep_until(due)
            self._lag_s.observe(max(0.0, trio.current_time() - due))
