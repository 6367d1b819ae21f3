"""Which TCPRoute splits the connections to a port of a Service.

One that names the port wins over one that does not; of several the oldest
counts, then the first by name (Gateway API, "Conflicts").
"""

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import NamedTuple

from ca.manifests.tcp_route import TCPRoute
from node_agent.model import ObjectName, ServicePort


class Split(NamedTuple):
    """Where the connections to one service port go: services and ports, with their weights added up."""

    route: ObjectName
    backends: tuple[tuple[ObjectName, int], ...]
    upto: tuple[int, ...]

    def backend(self, draw: float) -> tuple[ObjectName, int] | None:
        """Whose turn it is, for a ``draw`` in [0, 1); None if all weights are 0."""
        mark = draw * self.upto[-1]
        for backend, upto in zip(self.backends, self.upto, strict=True):
            if mark < upto:
                return backend
        return None


class TcpRoutes:
    """Every TCPRoute; changed only through ``apply``."""

    def __init__(self) -> None:
        self._routes: dict[ObjectName, TCPRoute] = {}
        self._splits: dict[ObjectName, dict[int | None, Split]] = {}
        self._conflicts: list[str] = []

    def apply(self, routes: Mapping[ObjectName, TCPRoute | None]) -> frozenset[ObjectName]:
        """Take in what is new (or None for gone); returns the services that it is about."""
        touched = set()
        for name, route in routes.items():
            for each in (self._routes.pop(name, None), route):
                if each is not None:
                    touched |= {ObjectName(each.namespace, parent.service) for parent in each.parents}
            if route is not None:
                self._routes[name] = route
        if routes:
            self._work_out()
        return frozenset(touched)

    def _work_out(self) -> None:
        self._splits, self._conflicts = {}, []
        for route in sorted(self._routes.values(), key=lambda each: (each.created, each.namespace, each.name)):
            split = _split(route)
            for parent in route.parents:
                of_service = self._splits.setdefault(ObjectName(route.namespace, parent.service), {})
                holder = of_service.setdefault(parent.port, split)
                if holder is not split:
                    port = "" if parent.port is None else f" port {parent.port}"
                    self._conflicts.append(
                        f"TCPRoutes {holder.route} and {split.route} both split service "
                        f"{route.namespace}/{parent.service}{port}; {holder.route} is in force"
                    )

    def split(self, port: ServicePort) -> Split | None:
        """The split of a service port, None if there is none."""
        of_service = self._splits.get(port.service)
        if of_service is None:
            return None
        return of_service.get(port.port) or of_service.get(None)

    def conflicts(self) -> Iterator[str]:
        """One line for each route that another one keeps out of force."""
        return iter(self._conflicts)


def _split(route: TCPRoute) -> Split:
    return Split(
        route=ObjectName(route.namespace, route.name),
        backends=tuple((ObjectName(route.namespace, each.service), each.port) for each in route.backends),
        upto=tuple(accumulate(each.weight for each in route.backends)),
    )
