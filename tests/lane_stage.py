"""Two pods of one node that may use the same-node lane."""

import json
import os
import socket
import threading
from typing import Final

from tests.mesh_builder import Mesh, read_all, wait_for

PORT: Final = 8080


class LaneStage:
    """A client and a server with an echo, and whatever they say to each other."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.server = mesh.pod("server", namespace="lane", service_account="server", labels={"app": "server"})
        self.server.serve_echo(PORT)
        self.client = mesh.pod("client", namespace="lane", service_account="client")

    def echo(self, ip: str, port: int = PORT, *, size: int = 1000) -> None:
        """Send ``size`` bytes, half-close, and get them back."""
        sent = os.urandom(size)
        with self.client.connect(ip, port) as connection:

            def write() -> None:
                connection.sendall(sent)
                connection.shutdown(socket.SHUT_WR)

            writer = threading.Thread(target=write)
            writer.start()
            got = read_all(connection)
            writer.join()
        assert got == sent

    def taken(self) -> int:
        return int(self.mesh.metric(1, "ringfence_lane_taken_total"))

    def learn(self, ip: str, port: int = PORT) -> None:
        """Connect until it goes by the lane."""

        def is_on_the_lane() -> bool:
            before = self.taken()
            self.echo(ip, port)
            return self.taken() > before

        wait_for(f"{ip} to be on the lane", is_on_the_lane)

    def entries(self) -> dict[str, int | None]:
        """Of the maps of the kernel, by name."""
        shown = json.loads(self.mesh.lab("ringfence", "1", "bpf", "status", "--json"))
        return {each["name"]: each["entries"] for each in shown["maps"]}

    def is_empty(self) -> bool:
        entries = self.entries()
        return not any(entries[name] for name in ("passes", "originals", "flows", "lane_connections", "lane_spill"))


def counted_on_the_lane(mesh: Mesh) -> dict[tuple[str, str], float]:
    """The standard counters of what was judged but not encrypted."""
    return {
        (reporter, what): mesh.metric(
            1, f"istio_tcp_{what}_total", reporter=reporter, connection_security_policy="none"
        )
        for reporter in ("source", "destination")
        for what in ("connections_opened", "connections_closed", "sent_bytes", "received_bytes")
    }


def if_counted(
    now: dict[tuple[str, str], float], before: dict[tuple[str, str], float], *, number: int
) -> dict[tuple[str, str], float] | None:
    """``now``, if that many connections have begun and ended since ``before``."""
    is_settled = all(now[key] - before[key] == number for key in now if key[1].startswith("connections"))
    return now if is_settled else None
