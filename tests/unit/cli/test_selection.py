"""Options that leave only some rows, for people and for ``--json``."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from node_agent.cli.main import main
from tests.fake_agent import FakeAgent, fake_agent


def connection(number: int, source: str, service: str | None, state: str = "open", **more: Any) -> dict[str, Any]:
    return {"id": str(number), "source": source, "service": service, "state": state, "direction": "outbound", **more}


def ended(number: int, source: str, service: str, reason: str) -> dict[str, Any]:
    workload = {"source_workload": source, "destination_workload": None, "direction": "inbound"}
    return {"id": str(number), "service": service, "close_reason": reason, "duration_ms": 1500.0, **workload}


def certificate(name: str, ends_in: timedelta | None, state: str = "valid") -> dict[str, Any]:
    end = None if ends_in is None else (datetime.now(UTC) + ends_in).isoformat()
    return {"identity": name, "not_after": end, "state": state}


ROWS: dict[str, list[dict[str, Any]]] = {
    "/workloads": [
        {"name": "a", "namespace": "shop", "local": True, "state": "serving"},
        {"name": "b", "namespace": "shop", "local": False, "state": "remote"},
        {"name": "c", "namespace": "infra", "local": True, "state": "pending"},
    ],
    "/services": [
        {"name": "a", "namespace": "shop", "ready": 2, "endpoints": 2},
        {"name": "b", "namespace": "shop", "ready": 1, "endpoints": 2},
        {"name": "c", "namespace": "infra", "ready": 0, "endpoints": 0},
    ],
    "/endpoints": [
        {"name": "a", "service": "shop/web", "ready": True, "health": "healthy"},
        {"name": "b", "service": "shop/web", "ready": True, "health": "ejected"},
        {"name": "c", "service": "infra/dns", "ready": False, "health": "healthy"},
    ],
    "/connections": [
        connection(1, "shop/cart", "shop/web:80", age_s=1, sent_bytes=9, received_bytes=0),
        connection(2, "default/cart", "shop/web:443", age_s=3, sent_bytes=5, received_bytes=7),
        connection(3, "default/other", None, "opening", age_s=2, sent_bytes=7, received_bytes=8),
    ],
    "/recent": [
        ended(1, "shop/cart", "shop/web:80", "ok"),
        ended(2, "default/cart", "infra/dns:53", "policy_denied"),
        ended(3, "default/cart", "shop/web:80", "policy_denied"),
    ],
}


def certificates() -> list[dict[str, Any]]:
    """Of now: the tests before these take long."""
    return [
        certificate("a", timedelta(hours=1)),
        certificate("b", timedelta(minutes=10)),
        certificate("c", timedelta(hours=1), "revoked"),
        certificate("d", None, "pending"),
    ]


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FakeAgent]:
    with fake_agent(tmp_path) as server:
        server.answers.update(ROWS, **{"/certs": certificates()})
        yield server


@pytest.mark.parametrize(
    ("command", "left"),
    [
        ("workloads", "abc"),
        ("workloads -n shop", "ab"),
        ("workloads --local", "ac"),
        ("workloads --local --state pending", "c"),
        ("services --namespace shop --not-ready", "b"),
        ("services --not-ready", "bc"),
        ("endpoints --unhealthy", "bc"),
        ("endpoints -n infra", "c"),
        ("connections", "123"),
        ("connections --service web", "12"),
        ("connections --service shop/web", "12"),
        ("connections --service web:80", "1"),
        ("connections --service default/web", ""),
        ("connections --source cart", "12"),
        ("connections --source default/cart", "2"),
        ("connections -n default", "23"),
        ("connections -n shop", "12"),
        ("connections --state opening", "3"),
        ("connections --direction inbound", ""),
        ("connections --sort age", "231"),
        ("connections --sort sent --limit 2", "13"),
        ("connections --sort received", "321"),
        ("connections --ended", "123"),
        ("connections --reason policy_denied", "23"),
        ("connections --ended --reason policy_denied --service web --limit 1", "3"),
        ("connections --ended -n infra", "2"),
        ("certs", "abcd"),
        ("certs --expiring", "bcd"),
        ("certs --expiring 5m", "cd"),
        ("certs --expiring 2h", "abcd"),
    ],
)
def test_options_leave_some_rows(agent: FakeAgent, capsys: pytest.CaptureFixture[str], command: str, left: str) -> None:
    assert main([*command.split(), "--json", "--agent", str(agent.server_address)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert "".join(row.get("id") or row.get("name") or row.get("identity") for row in rows) == left
    assert main([*command.split(), "--agent", str(agent.server_address)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == (len(left) + 1 if left else 1)


def test_people_see_the_oldest_connection_first(agent: FakeAgent, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["connections", "--agent", str(agent.server_address)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["ID", "2", "3", "1"]


@pytest.mark.parametrize(
    "wrong",
    [
        "connections --limit 0",
        "connections --limit x",
        "certs --expiring soon",
        "certs --expiring 5",
        "connections --sort x",
    ],
)
def test_wrong_values_are_refused_before_anything_is_asked(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([*wrong.split(), "--agent", "/nowhere"])
    assert exit_.value.code == 2
    assert "ringfence" in capsys.readouterr().err
