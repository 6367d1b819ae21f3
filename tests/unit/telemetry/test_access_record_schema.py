"""The JSON Schema of access records says what the code writes and what the page promises, and it has teeth."""

import json
import re
from pathlib import Path
from typing import Any, Final

import pytest
from jsonschema import Draft202012Validator

from ca.spiffe import SpiffeId
from node_agent.errors import CloseReason
from node_agent.model import EndpointAddress, ObjectName, OriginalDestination, PeerAddress, ServicePort, Workload
from node_agent.telemetry.connection_record import ConnectionRecord
from node_agent.telemetry.metrics import Metrics
from node_agent.telemetry.response_flags import RESPONSE_FLAGS, ResponseFlag
from node_agent.telemetry.told import SCHEMA, access_record
from node_agent.telemetry.tracing import Trace
from node_agent.telemetry.traffic import Traffic

ROOT: Final = Path(__file__).parents[3]
DOCUMENT: Final[dict[str, Any]] = json.loads((ROOT / "node_agent/telemetry/access_record.schema.json").read_text())
VALIDATOR: Final = Draft202012Validator(DOCUMENT)
NASTY: Final = 'x\n\x00\x1b]0;"}\\\u202e'


def record(*, full: bool = True, name: str = "cart", ip: str = "10.0.0.1") -> ConnectionRecord:
    made = ConnectionRecord(traffic=Traffic(Metrics()), record_id="n1-0123af.2-7", direction="inbound", now=5.0)
    if full:
        workload = Workload(
            uid="u",
            name=ObjectName("shop", name),
            service_account="sa",
            node="n1",
            addresses=(ip,),
            identity=SpiffeId.workload("cluster.local", "shop", "sa"),
            enrolled=True,
            labels={},
        )
        made.note(source=workload, source_address=PeerAddress(ip, 1), source_identity=workload.identity)
        made.note(original_destination=OriginalDestination(ip, 65535), endpoint=EndpointAddress(ip, 80))
        made.note(service=ServicePort(service=ObjectName("shop", name), port=80), security="mutual_tls")
        made.note(destination=workload, destination_identity=workload.identity, policy=f"shop/{name}")
        made.audit, made.dry_run, made.fault = f"shop/{name}, shop/b", f"denied by shop/{name}", "delay 5 ms"
        made.connect_ms, made.attempts, made.detail = 1.5, 2, NASTY * 1000
        made.trace = Trace(trace_id=1, span_id=2, parent_id=0, now=lambda: 0.0)
    return made


def rendered(made: ConnectionRecord, reason: CloseReason | None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(access_record(made, reason, now=7.5, at_s=1_700_000_000.5))
    return found


def test_the_schema_is_one_and_knows_its_version() -> None:
    Draft202012Validator.check_schema(DOCUMENT)
    assert DOCUMENT["properties"]["schema"] == {"const": SCHEMA}


def test_fields_are_those_that_are_written_and_those_of_the_page_in_the_same_order() -> None:
    written = list(rendered(record(), CloseReason.OK))
    assert list(DOCUMENT["properties"]) == DOCUMENT["required"] == written
    page = (ROOT / "docs/access-records.md").read_text().partition("## Fields")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == written


def test_the_closed_sets_are_those_of_the_code() -> None:
    assert set(DOCUMENT["properties"]["close_reason"]["enum"]) == {None, *CloseReason}
    assert set(DOCUMENT["properties"]["response_flags"]["enum"]) == {None, *ResponseFlag}


@pytest.mark.parametrize("reason", [None, *CloseReason])
def test_every_kind_of_record_is_valid(reason: CloseReason | None) -> None:
    for made in (record(), record(full=False), record(name=NASTY), record(ip="fd00::1")):
        found = rendered(made, reason)
        VALIDATOR.validate(found)
        assert found["response_flags"] == (None if reason is None else RESPONSE_FLAGS[reason])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schema", 2),
        ("schema", "1"),
        ("event", "open"),
        ("time", "2026-11-22 11:35:06"),
        ("time", 5),
        ("id", "n1"),
        ("direction", "sideways"),
        ("source_address", "10.0.0.1"),
        ("endpoint", "fd00::1:80"),
        ("source_workload", "cart"),
        ("source_identity", "https://cluster.local/x"),
        ("connection_security_policy", None),
        ("sent_bytes", -1),
        ("sent_bytes", 1.5),
        ("duration_ms", None),
        ("close_reason", "bored"),
        ("close_reason", None),
        ("response_flags", "OK"),
        ("detail", None),
        ("dry_run", "perhaps"),
        ("trace_id", "0af7"),
        ("trace_id", None),
        ("span_id", None),
    ],
)
def test_what_is_no_record_is_not_valid(field: str, value: object) -> None:
    found = rendered(record(), CloseReason.OK)
    assert not VALIDATOR.is_valid({**found, field: value})


@pytest.mark.parametrize("field", DOCUMENT["required"])
def test_every_field_is_always_there(field: str) -> None:
    found = rendered(record(full=False), CloseReason.OK)
    del found[field]
    assert not VALIDATOR.is_valid(found)


def test_an_opened_record_has_no_reason_to_close() -> None:
    found = rendered(record(), None)
    assert not VALIDATOR.is_valid({**found, "close_reason": "ok"})
    assert not VALIDATOR.is_valid({**found, "response_flags": "-"})


def test_a_reader_of_today_takes_a_record_of_tomorrow() -> None:
    VALIDATOR.validate({**rendered(record(), CloseReason.OK), "something_new": [1]})
