"""What operators are shown of an endpoint."""

from typing import NamedTuple

from node_agent.balance.endpoints import EndpointState


class EndpointLoad(NamedTuple):
    """What operators are shown of an endpoint.

    ``latency_s`` is None before the first connect.  ``health`` is ``healthy``,
    ``unhealthy`` (by active checks), ``ejected``, ``probing`` or ``silent``;
    ``why`` is why it is not healthy, ``ejected_for_s`` for how long it still is.
    """

    open_connections: int
    latency_s: float | None
    health: str = "healthy"
    why: str | None = None
    ejected_for_s: float | None = None


def shown(state: EndpointState, now: float) -> EndpointLoad:
    """The state of an endpoint in words."""
    until = state.outlier.ejected_until
    why = None if state.outlier.why is None else str(state.outlier.why)
    if until is not None and now < until:
        health = "ejected"
    elif state.is_unhealthy:
        health, why = "unhealthy", state.why_unhealthy or why
    elif until is not None:
        health = "probing"
    elif state.silence is not None and (silent_s := state.silence.silent_s(now)):
        health, why = "silent", f"no answer for {silent_s:.1f} s, others answer"
    else:
        health = "healthy"
    return EndpointLoad(
        state.open_connections,
        state.latency.at(now) if state.latency else None,
        health,
        why,
        None if until is None else max(0.0, until - now),
    )
