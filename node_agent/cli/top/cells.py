"""How numbers of ``top`` are written, on the screen and in a script's table."""

from node_agent.cli.rows import milliseconds as connect_time
from node_agent.cli.table import Cell
from node_agent.cli.terminal import printable, size
from node_agent.cli.top.rates import Service

HEADERS = ("SERVICE", "DIR", ">CONN/S", ">OPEN", ">TO/S", ">BACK/S", ">ERR/S", "WHY", ">CONNECT", ">UP")


def cells(service: Service) -> tuple[Cell, ...]:
    """One row, in the order of the headers."""
    return (
        printable(service.name),
        service.direction,
        rate(service.connections),
        str(service.open),
        size(service.to_bytes) if service.to_bytes else "-",
        size(service.back_bytes) if service.back_bytes else "-",
        (rate(service.errors), "red" if service.errors else ""),
        (printable(service.why), "red"),
        connect_time(service.connect_ms),
        _up(service),
    )


def rate(per_s: float) -> str:
    """``-``, ``0.25``, ``12.5``, ``1834``."""
    if not per_s:
        return "-"
    return f"{per_s:.2f}" if per_s < 10 else f"{per_s:.1f}" if per_s < 100 else f"{per_s:.0f}"


def milliseconds(seconds: float | None) -> str:
    """``4.2 ms``; a dash for what is not known."""
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms"


def _up(service: Service) -> Cell:
    if service.endpoints is None or service.usable is None:
        return "-"
    colour = "green" if service.usable == service.endpoints else "red" if not service.usable else "yellow"
    return f"{service.usable}/{service.endpoints}", colour
