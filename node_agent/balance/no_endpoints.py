"""That nobody serves a service port, and why."""

from collections.abc import Sequence

from node_agent.balance.tiers import Member, Tiers
from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.model import Endpoint, ServicePort


class NoEndpoints(ConnectionFailure):
    """Nobody serves this service port now."""

    def __init__(self, detail: str) -> None:
        super().__init__(CloseReason.NO_SERVICE_ENDPOINTS, detail)


def why_none(service: ServicePort, candidates: Sequence[Endpoint], members: Sequence[Member], tiers: Tiers) -> str:
    """Why none of the ``candidates`` could be chosen, for people."""
    if not candidates:
        return f"{service} has no endpoints"
    ready = sum(each.ready for each in candidates)
    if not ready:
        return f"none of the {len(candidates)} endpoints of {service} is ready"
    if not members:
        return f"none of the {ready} ready endpoints of {service} is in the subset of its TrafficPolicy"
    if not tiers.tiers:
        return f"none of the {ready} ready endpoints of {service} is healthy, or near enough for its TrafficPolicy"
    return f"each of the {ready} ready endpoints of {service} was tried"
