"""``GET /mesh`` on the operator's socket: the whole mesh, for the dashboard.

    {"node", "services", "endpoints", "workloads", "agents": [{"node", "sight", "error"}]}

``sight`` is text: the JSON document of that agent (``own.py``), as it sent it.
"""

import json
from collections.abc import Iterator

from ca.http_server import JSON, Response, Routes
from node_agent.sight.collector import Collector
from node_agent.sight.own import OwnSight


def mesh_routes(*, node: str, own: OwnSight, collector: Collector) -> Routes:
    """What ``collector`` has collected is shown; somebody has to tell it to, before."""

    def document() -> Iterator[bytes]:
        yield f'{{"node":{json.dumps(node)},'.encode()
        yield from own.directory()
        yield f',"agents":[{{"node":{json.dumps(node)},"error":null,"sight":"'.encode()
        for chunk in own.document():
            yield json.dumps(chunk.decode()).encode()[1:-1]
        yield b'"}'
        for row in collector.rows():
            yield b",\n" + row.removeprefix(b",\n")
        yield b"]}\n"

    return {"/mesh": {"GET": lambda _: Response(200, JSON, document())}}
