"""An access log whose spans and records can be looked at before they are sent to a collector."""

import random
import time
from collections.abc import Callable
from pathlib import Path

from ca.spiffe import SpiffeId
from node_agent.errors import ConnectionFailure
from node_agent.export_config import Collector
from node_agent.model import EndpointAddress, ObjectName, OriginalDestination, PeerAddress, ServicePort, Workload
from node_agent.telemetry.access_log import AccessLog
from node_agent.telemetry.metrics import Metrics
from node_agent.telemetry.otlp_collector import Source
from node_agent.telemetry.tracing import FinishedSpan, Tracer

NASTY = "x\n\x00\x1b]0;owned\x07\"}\\',\u202e\ud800<script>"
SOURCE = Source(service_name="mesh", version="1.2.3", node="n1", trust_domain="cluster.local", worker=None)


def wait_for(look: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not look():
        assert time.monotonic() < limit
        time.sleep(0.005)


def collector_at(url: str, *, timeout_s: float = 30.0, headers_file: Path | None = None) -> Collector:
    return Collector(url=url, timeout_s=timeout_s, headers_file=headers_file, ca_file=None)


def workload(name: str, *, uid: str = "u", labels: dict[str, str] | None = None) -> Workload:
    return Workload(
        uid=uid,
        name=ObjectName("shop", name),
        service_account=name,
        node="n1",
        addresses=("10.0.0.1",),
        identity=SpiffeId.workload("cluster.local", "shop", "cart"),
        enrolled=True,
        labels=labels or {},
    )


class Bench:
    """An access log whose spans and records go to a list; monotonic 100 is 1,700,000,000 since the epoch."""

    def __init__(self, ratio: float = 1.0) -> None:
        self.now = 100.0
        self.spans: list[FinishedSpan] = []
        self.tracer = Tracer(sample_ratio=ratio, rng=random.Random(7), now=lambda: self.now)
        self.log = AccessLog(
            metrics=Metrics(),
            node="n1",
            now=lambda: self.now,
            wall=lambda: 1_700_000_000.0 + self.now - 100,
            tracer=self.tracer,
            on_span=self.spans.append,
            opened_record=True,
        )

    def outbound(self, *, source: Workload | None = None, failure: ConnectionFailure | None = None) -> str:
        """One connection; returns what its OPEN would say."""
        with self.log.connection("outbound") as record:
            source = source or workload("cart")
            record.note(source=source, source_address=PeerAddress("10.0.0.1", 4444), source_identity=source.identity)
            record.note(original_destination=OriginalDestination("10.1.0.1", 80))
            record.note(service=ServicePort(service=ObjectName("shop", "web"), port=80))
            self.now += 0.25
            record.chose(
                endpoint=EndpointAddress("10.0.0.2", 8080),
                destination=workload("web"),
                destination_identity=SpiffeId.workload("cluster.local", "shop", "web"),
                security="mutual_tls",
            )
            self.now += 0.5
            if failure is not None:
                raise failure
            record.opened()
            record.sent_bytes, record.received_bytes = 300, 70
            self.now += 0.25
        return record.trace_parent

    def inbound(self, trace_parent: str, destination: Workload | None = None) -> None:
        with self.log.connection("inbound", trace_parent=trace_parent) as record:
            record.note(
                source_address=PeerAddress("fd00::1", 4444), original_destination=OriginalDestination("fd00::2", 80)
            )
            record.note(destination=destination or workload("web-6f9c-x2x", labels={"pod-template-hash": "6f9c"}))
            record.opened()
