"""What is told of connections on the lane: alike or one by one, their records say the same."""

import json
import logging
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from bpf.abi import abi
from node_agent.capture.lane import KernelLane
from node_agent.capture.lane_end import RawEnd
from node_agent.capture.pinned import address_bytes
from node_agent.identity.trust import TrustStore
from node_agent.policy import PolicyEngine
from node_agent.proxy.lane_table import Grant, LaneTable
from node_agent.proxy.live import LiveConnections
from node_agent.proxy.policy_counts import PolicyCounts
from node_agent.proxy.policy_gate import PolicyGate
from node_agent.proxy.trust_gate import TrustGate
from node_agent.registry import Registry, Update
from node_agent.telemetry.access_log import ACCESS_LOGGER, AccessLog
from node_agent.telemetry.metrics import Metrics
from tests.manifest_builder import authorization_policy, meshed_namespace, node, pod, service
from tests.metrics_text import text_of

_CLIENT, _WEB, _CLUSTER_IP = "10.1.0.1", "10.1.0.2", "10.96.0.1"
_GRANT = 7
_FLAG = abi().constants
_ENDED_WELL = _FLAG["LANE_SYN_SENT"] | _FLAG["LANE_ESTABLISHED"] | _FLAG["LANE_FIN_ACKED"] | _FLAG["LANE_FIN_CAME"]
_PORT_80_BE, _MS = 80 << 8, 1_000_000
_ALLOW = {"action": "ALLOW", "rules": [{"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/client"]}}]}]}
_AUDIT = {"action": "AUDIT", "rules": [{}]}


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[dict[str, Any]] = []
        self.many = 0  # that came together with others

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(json.loads(record.getMessage()))

    def emit_lines(self, texts: list[str]) -> None:
        self.many += len(texts) if len(texts) > 1 else 0
        self.records.extend(map(json.loads, texts))


class _Node:
    """A client and a web server on node-1, and what the kernel tells of them."""

    def __init__(self) -> None:
        self.lines = _Lines()
        self.metrics = Metrics()
        self.registry = Registry("cluster.local")
        self.engine = PolicyEngine()
        self.live = LiveConnections()
        self.unreachable = 0
        self.grants: dict[int, Grant] = {}
        self.table = LaneTable(
            kernel=cast("KernelLane", KernelLane),  # only asked what an end means
            access_log=AccessLog(metrics=self.metrics, node="node-1"),
            live=self.live,
            registry=self.registry,
            policies=PolicyGate(
                engine=self.engine,
                registry=self.registry,
                live=self.live,
                counts=PolicyCounts(self.metrics),
                clock=time.monotonic,
            ),
            trust=TrustGate(trust=TrustStore(trust_domain="cluster.local", roots=[]), live=self.live),
            grant_of=self.grants.get,
            namespace_of=lambda _cookie: None,
            on_unreachable=self._count_unreachable,
        )
        self.apply(node("node-1", "10.1.0.0/24"), meshed_namespace(), service("web", _CLUSTER_IP))
        self.apply(pod("client", _CLIENT, service_account="client"), pod("web", _WEB))
        client, web = self.registry.workload_at(_CLIENT), self.registry.workload_at(_WEB)
        assert client is not None
        assert web is not None
        self.grants[_GRANT] = Grant(source=client, destination=web, service=self.registry.service_at(_CLUSTER_IP, 80))

    def _count_unreachable(self) -> None:
        self.unreachable += 1

    def apply(self, *objects: Any) -> None:
        changes = self.registry.apply(Update(upserts=objects))
        self.engine.apply(changes.policies)

    def ended(self, ends: list[RawEnd]) -> None:
        # Now and not before: pytest adds a handler of its own to a logger that does not propagate.
        logging.getLogger(ACCESS_LOGGER).handlers[:] = [self.lines]
        self.table.ended(ends)

    def counted(self, name: str) -> dict[str, float]:
        lines = [line for line in text_of(self.metrics).splitlines() if line.startswith(f"{name}{{")]
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


@pytest.fixture
def here() -> Iterator[_Node]:
    here = _Node()
    logger = logging.getLogger(ACCESS_LOGGER)
    before = logger.level, logger.propagate, logger.handlers[:]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    yield here
    logger.level, logger.propagate, logger.handlers[:] = before


def _end(number: int, **fields: Any) -> RawEnd:
    """Connection ``number``, which ended well unless ``fields`` say otherwise."""
    began_ns = time.monotonic_ns() - 50 * _MS
    end = RawEnd(
        cookie=number,
        grant=_GRANT,
        netns_cookie=1,
        began_ns=began_ns,
        established_ns=began_ns + 2 * _MS,
        ended_ns=began_ns + (10 + number) * _MS,
        acked_bytes=2 + 100 + number,
        received_bytes=1 + 200 + number,
        original_ip_be=address_bytes(_CLUSTER_IP),
        original_port_be=_PORT_80_BE,
        flags=_ENDED_WELL,
        client_ip_be=address_bytes(_CLIENT),
        server_ip_be=address_bytes(_WEB),
        client_port=40_000 + number,
        server_port=8080,
        error=0,
        reserved=0,
    )
    return end._replace(**fields)


def _without_own(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in ("id", "time")}


def test_those_that_end_well_are_told_together_and_as_each_by_itself(here: _Node) -> None:
    here.apply(authorization_policy("clients", _ALLOW))
    ends = [_end(number) for number in range(20)]
    here.ended(ends)
    together = here.lines.records[:]
    assert here.lines.many == len(together) == 40
    counters = here.counted("istio_tcp_received_bytes_total")
    assert sum(counters.values()) == 2 * sum(100 + number for number in range(20))

    here.lines.records.clear()
    for end in ends:
        here.table._ended(KernelLane.told(end))
    assert here.lines.many == 40
    assert [_without_own(each) for each in together] == [_without_own(each) for each in here.lines.records]
    assert len({each["id"] for each in together + here.lines.records}) == 80
    assert together[39] == {
        **together[39],
        "direction": "inbound",
        "source_address": f"{_CLIENT}:40019",
        "source_workload": "shop/client",
        "original_destination": f"{_WEB}:8080",
        "policy": "shop/clients",
        "sent_bytes": 219,
        "received_bytes": 119,
        "duration_ms": 29.0,
        "connect_ms": 2.0,
        "attempts": 1,
        "close_reason": "ok",
    }
    doubled = here.counted("istio_tcp_received_bytes_total")
    assert doubled == {key: 2 * value for key, value in counters.items()}


_NO_FIN_ACKED = _ENDED_WELL & ~_FLAG["LANE_FIN_ACKED"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"error": 104}, "upstream_reset"),
        ({"error": 103}, "downstream_reset"),
        ({"error": 111, "flags": _FLAG["LANE_SYN_SENT"], "established_ns": 0}, "connect_refused"),
        ({"flags": _FLAG["LANE_SYN_SENT"] | _FLAG["LANE_REFUSED"], "established_ns": 0}, "connect_refused"),
        ({"flags": _NO_FIN_ACKED}, "downstream_reset"),
        ({"grant": 1}, "ok"),  # of an agent before us
    ],
)
def test_those_that_do_not_and_those_nobody_knows_are_told_in_between_by_themselves(
    here: _Node, fields: dict[str, Any], reason: str
) -> None:
    here.ended([_end(0), _end(1), _end(2, **fields), _end(3)])
    told = [(each["direction"], each["source_address"], each["close_reason"]) for each in here.lines.records]
    assert told == [
        (direction, f"{_CLIENT}:{40_000 + number}", reason if number == 2 else "ok")
        for number in range(4)
        for direction in ("outbound", "inbound")
    ]
    assert here.lines.many == 6
    assert here.unreachable == (reason == "connect_refused")
    assert {each["source_workload"] for each in here.lines.records} == {"shop/client"}


def test_what_the_policies_say_is_that_of_now(here: _Node) -> None:
    here.ended([_end(0)])
    here.apply(authorization_policy("clients", _ALLOW))
    here.ended([_end(1)])
    here.apply(authorization_policy("everything", _AUDIT))
    here.ended([_end(2), _end(3)])
    inbound = [each for each in here.lines.records if each["direction"] == "inbound"]
    name, audit = "shop/clients", "shop/everything"
    assert [(each["policy"], each["audit"]) for each in inbound] == [
        (None, None),
        (name, None),
        (name, audit),
        (name, audit),
    ]
    assert sum(here.counted("ringfence_policy_audits_total").values()) == 2
    assert here.lines.many == 4


def test_two_of_another_pair_are_not_taken_for_this_one(here: _Node) -> None:
    client = here.registry.workload_at(_CLIENT)
    assert client is not None
    here.grants[8] = Grant(source=client, destination=client, service=None)
    to_itself = {"grant": 8, "server_ip_be": address_bytes(_CLIENT), "original_ip_be": address_bytes(_CLIENT)}
    by_ipv6 = {"client_ip_be": address_bytes("fd00::1")}
    here.ended([_end(0), _end(1, **to_itself), _end(2), _end(3, **by_ipv6), _end(4, server_port=81)])
    outbound = [each for each in here.lines.records if each["direction"] == "outbound"]
    assert [(each["source_address"], each["destination_workload"], each["endpoint"]) for each in outbound] == [
        (f"{_CLIENT}:40000", "shop/web", f"{_WEB}:8080"),
        (f"{_CLIENT}:40001", "shop/client", f"{_CLIENT}:8080"),
        (f"{_CLIENT}:40002", "shop/web", f"{_WEB}:8080"),
        ("[fd00::1]:40003", "shop/web", f"{_WEB}:8080"),
        (f"{_CLIENT}:40004", "shop/web", f"{_WEB}:81"),
    ]
    assert here.lines.many == 10


def test_more_pairs_than_are_remembered_are_told_nevertheless(here: _Node) -> None:
    for begin in range(0, 2500, 500):
        here.ended([_end(1, server_port=1 + begin + number) for number in range(500)])
    assert len({each["endpoint"] for each in here.lines.records}) == 2501  # None: the inbound ones have none
