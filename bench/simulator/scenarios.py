"""Who fails when: from a quarter of the time to three quarters of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from bench.simulator.servers import Mode, Server

_ZONES: Final = ("zone-a", "zone-b", "zone-c")
LOST_ZONE: Final = _ZONES[-1]
_FLAP_S: Final = 3.0
_ONE_IN: Final = 20  # more than one in a hundred: else no p99 would show it

Change = tuple[float, Callable[[], None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """``load`` is the share of all servers' capacity that is asked for."""

    endpoints: int = 240
    agents: int = 12
    seconds: float = 40.0
    load: float = 0.6

    def zone(self, number: int) -> str:
        return _ZONES[number % len(_ZONES)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """``changes`` says what happens to the servers in so many seconds, and when."""

    title: str
    changes: Callable[[Sequence[Server], float], list[Change]]


def _slow(servers: Sequence[Server], seconds: float) -> list[Change]:
    def slow_down() -> None:
        servers[0].slowness = 20.0

    def recover() -> None:
        servers[0].slowness = 1.0

    return [(seconds * 0.25, slow_down), (seconds * 0.75, recover)]


def _failing(servers: Sequence[Server], seconds: float) -> list[Change]:
    return [(seconds * 0.25, lambda: servers[0].fail(Mode.REFUSES)), (seconds * 0.75, lambda: _revive(servers[:1]))]


def _flapping(servers: Sequence[Server], seconds: float) -> list[Change]:
    found: list[Change] = []
    at = seconds * 0.25
    while at < seconds * 0.75:
        found.append((at, lambda: servers[0].fail(Mode.REFUSES)))
        found.append((at + _FLAP_S / 2, lambda: _revive(servers[:1])))
        at += _FLAP_S
    return found


def _stuck(servers: Sequence[Server], seconds: float) -> list[Change]:
    hung = servers[::_ONE_IN]

    def hang() -> None:
        for each in hung:
            each.hang()

    return [(seconds * 0.25, hang), (seconds * 0.75, lambda: _revive(hung))]


def _zone_lost(servers: Sequence[Server], seconds: float) -> list[Change]:
    lost = [each for each in servers if each.zone == LOST_ZONE]

    def cut() -> None:
        for each in lost:
            each.fail(Mode.SILENT)

    return [(seconds * 0.25, cut), (seconds * 0.75, lambda: _revive(lost))]


def _revive(servers: Sequence[Server]) -> None:
    for each in servers:
        each.revive()


SCENARIOS: Final = {
    "slow": Scenario(title="one endpoint is 20 times slower", changes=_slow),
    "failing": Scenario(title="one endpoint refuses", changes=_failing),
    "flapping": Scenario(title="one endpoint comes and goes every 3 s", changes=_flapping),
    "stuck": Scenario(title="one endpoint in twenty accepts and answers nothing", changes=_stuck),
    "zone": Scenario(title="one zone of three is cut off without a word", changes=_zone_lost),
}
