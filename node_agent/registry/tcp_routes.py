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
        self._of_service: dict[ObjectName, dict[ObjectName, TCPRoute]] = {}
        self._splits: dict[ObjectName, dict[int | None, Split]] = {}
        self._conflicts: dict[ObjectName, list[str]] = {}

    def apply(self, routes: Mapping[ObjectName, TCPRoute | None]) -> frozenset[ObjectName]:
        """Take in what is new (or None for gone); returns the services that it is about.

        Costs what it touches, not what there is.
        """
        touched = set()
        for name, route in routes.items():
            before = self._routes.pop(name, None)
            for service in _services(before):
                touched.add(service)
                del self._of_service[service][name]
            if route is not None:
                self._routes[name] = route
                for service in _services(route):
                    touched.add(service)
                    self._of_service.setdefault(service, {})[name] = route
        for service in touched:
            self._work_out(service)
        return frozenset(touched)

    def _work_out(self, service: ObjectName) -> None:
        routes = sorted(self._of_service[service].values(), key=lambda each: (each.created, each.name))
        splits: dict[int | None, Split] = {}
        conflicts: list[str] = []
        for route in routes:
            split = _split(route)
            for port in dict.fromkeys(parent.port for parent in route.parents if parent.service == service.name):
                holder = splits.setdefault(port, split)
                if holder is not split:
                    which = "" if port is None else f" port {port}"
                    conflicts.append(
                        f"TCPRoutes {holder.route} and {split.route} both split service {service}{which}; "
                        f"{holder.route} is in force"
                    )
        self._conflicts.pop(service, None)
        if conflicts:
            self._conflicts[service] = conflicts
        if routes:
            self._splits[service] = splits
        else:
            del self._of_service[service]
            self._splits.pop(service, None)

    def split(self, port: ServicePort) -> Split | None:
        """The split of a service port, None if there is none."""
        of_service = self._splits.get(port.service)
        if of_service is None:
            return None
        return of_service.get(port.port) or of_service.get(None)

    def __iter__(self) -> Iterator[TCPRoute]:
        return iter(self._routes.values())

    def conflicts(self) -> Iterator[str]:
        """One line for each route that another one keeps out of force."""
        for _, lines in sorted(self._conflicts.items()):
            yield from lines


def _services(route: TCPRoute | None) -> frozenset[ObjectName]:
    """What a route is about."""
    if route is None:
        return frozenset()
    return frozenset(ObjectName(route.namespace, parent.service) for parent in route.parents)


def _split(route: TCPRoute) -> Split:
    return Split(
        route=ObjectName(route.namespace, route.name),
        backends=tuple((ObjectName(route.namespace, each.service), each.port) for each in route.backends),
        upto=tuple(accumulate(each.weight for each in route.backends)),
    )
