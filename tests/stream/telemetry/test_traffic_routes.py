"""``GET /traffic``, ``/recent`` and ``/config``: what the operator's commands ask besides the old questions."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ca.http_server import Request
from node_agent.cli.top.rates import rates
from node_agent.config import load
from node_agent.errors import CloseReason
from node_agent.model import ObjectName, OriginalDestination, ServicePort
from node_agent.sight.shown_config import HIDDEN, shown_config
from node_agent.sight.traffic import traffic_routes
from node_agent.telemetry.access_log import ACCESS_LOGGER, AccessLog
from node_agent.telemetry.metrics import Metrics

_CONFIG = """
[agent]
node = "n1"
[ca]
address = ["10.0.0.1:15012", "10.0.0.2:15012"]
bundle_file = "/etc/ringfence/bundle.pem"
join_token_file = "/etc/ringfence/join-token"
"""


def answer(log: AccessLog, metrics: Metrics, path: str, at_s: float) -> Any:
    def endpoints(name: str) -> Iterator[dict[str, object]]:
        if name != "shop/web":
            raise LookupError(name)
        yield {"ready": True, "health": "healthy", "latency_ms": 1.0}
        yield {"ready": True, "health": "ejected", "latency_ms": 3.0}
        yield {"ready": False, "health": "healthy", "latency_ms": None}

    routes = traffic_routes(node="n1", families=metrics.read, endpoints=endpoints, recent=log.recent, now=lambda: at_s)
    response = routes[path]["GET"](Request(method="GET", path=path, query={}, body=b""))
    assert not isinstance(response.body, bytes)
    return json.loads(b"".join(response.body))


def port_of(name: str) -> ServicePort:
    return ServicePort(service=ObjectName("shop", name), name="http", port=80)


def test_what_the_agent_counts_becomes_the_rates_of_top() -> None:
    metrics = Metrics()
    log = AccessLog(metrics=metrics, node="n1")

    def connect(service: str, reason: CloseReason) -> None:
        with log.connection("outbound") as record:
            record.note(original_destination=OriginalDestination("10.0.0.9", 80), service=port_of(service))
            if reason is CloseReason.OK:
                record.connect_ms = 0.2
                record.opened()
                record.sent_bytes, record.received_bytes = 300, 100
            record.close_because(reason)

    connect("web", CloseReason.OK)
    before = answer(log, metrics, "/traffic", 10.0)
    for reason in (CloseReason.OK, CloseReason.OK, CloseReason.POLICY_DENIED):
        connect("web", reason)
    connect("gone", CloseReason.NO_SERVICE_ENDPOINTS)
    found = rates(before, answer(log, metrics, "/traffic", 12.0))

    services = {service.name: service for service in found.services}
    web, gone = services["shop/web"], services["shop/gone"]
    assert (web.direction, web.connections, web.open, web.to_bytes, web.back_bytes) == ("out", 1.5, 0, 100.0, 300.0)
    assert (web.errors, dict(web.reasons), web.connect_ms) == (0.5, {"policy_denied": 0.5}, 2.0)
    assert (web.usable, web.endpoints) == (1, 3)
    assert (dict(gone.reasons), gone.endpoints) == ({CloseReason.NO_SERVICE_ENDPOINTS.value: 0.5}, None)


def test_the_connections_that_ended_last_are_told_newest_first(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", ACCESS_LOGGER)
    metrics = Metrics()
    log = AccessLog(metrics=metrics, node="n1")
    for reason in (CloseReason.OK, CloseReason.POLICY_DENIED):
        with log.connection("inbound") as record:
            record.close_because(reason)
    assert [row["close_reason"] for row in answer(log, metrics, "/recent", 0.0)] == ["policy_denied", "ok"]


def test_every_key_of_the_configuration_is_told_of_and_a_new_one_is_hidden(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(_CONFIG)
    config = load(path)
    shown = shown_config(config)
    json.dumps(shown)
    assert {name: set(section) for name, section in shown.items()} == {
        section.name: {key.name for key in dataclasses.fields(getattr(config, section.name))}
        for section in dataclasses.fields(config)
    }
    assert shown["ca"]["address"] == ["10.0.0.1:15012", "10.0.0.2:15012"]
    assert shown["ca"]["join_token_file"] == "/etc/ringfence/join-token"

    @dataclasses.dataclass(frozen=True)
    class Section:
        new_key: str = "secret"

    @dataclasses.dataclass(frozen=True)
    class Newer:
        agent: Section = Section()
        unheard_of: Section = Section()

    newer: Any = Newer()
    assert shown_config(newer) == {"agent": {"new_key": HIDDEN}, "unheard_of": {"new_key": HIDDEN}}
